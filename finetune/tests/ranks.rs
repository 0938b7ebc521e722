//! Runs in two and three processes, which `mpirun` starts: the numbers of one process, a run that goes
//! on, and what is seen when a process breaks. `scripts/test_mpi.sh` starts them.

mod support;

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use support::place::{Place, Run};

/// The program in `ranks` processes of one thread each.
fn mpirun(place: &Place, ranks: usize, arguments: &str) -> Command {
    let alone = place.command(arguments);
    let mut command = Command::new("mpirun");
    command
        .args(["--oversubscribe", "-n", &ranks.to_string()])
        .arg(alone.get_program())
        .args(alone.get_args())
        .current_dir(place.0.path())
        // `mpirun` asks whether root means it.
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("RAYON_NUM_THREADS", "1");
    command
}

fn run(place: &Place, ranks: usize, out: &str, arguments: &str) -> Run {
    let arguments = format!("{arguments} --out {out}");
    place.finish(out, &mut mpirun(place, ranks, &arguments))
}

fn fails(place: &Place, ranks: usize, arguments: &str, text: &str) {
    let arguments = format!("{arguments} --out failed");
    place.fails_as(&mut mpirun(place, ranks, &arguments), text);
}

/// All numbers of all lines of the metrics, by their names.
fn metrics(run: &Run) -> Vec<(String, f64)> {
    let mut all = Vec::new();
    for line in run.metrics().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let step = &line["step"];
        for of in ["train", "held_out"] {
            for (key, value) in line[of].as_object().into_iter().flatten() {
                all.push((format!("{step} {of} {key}"), value.as_f64().unwrap()));
            }
        }
    }
    all
}

/// The saved weights.
fn weights(run: &Run) -> Vec<f64> {
    let bytes = fs::read(run.out.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort_unstable();
    let numbers = names.into_iter().flat_map(|name| {
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), Dtype::F32);
        let numbers = tensor.data().chunks_exact(4);
        let numbers = numbers.map(|x| f32::from_le_bytes(x.try_into().unwrap()).into());
        numbers.collect::<Vec<f64>>()
    });
    numbers.collect()
}

/// The same numbers but for rounding: metrics by their size, weights by that of their steps.
fn near(found: &Run, expected: &Run, what: &str) {
    let (a, b) = (metrics(found), metrics(expected));
    let names = |metrics: &[(String, f64)]| -> Vec<String> {
        metrics.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(&a), names(&b), "{what}");
    for ((name, a), (_, b)) in a.iter().zip(&b) {
        // Of rewards that are equal up to rounding, it decides which one is ahead.
        let is_share = ["displacement", "accuracies", "ties", "top1"];
        let begins = name.starts_with("0 ") || name.starts_with("1 ");
        if begins && is_share.iter().any(|share| name.contains(share)) {
            continue;
        }
        let most = 2e-4 * b.abs().max(1.0);
        assert!((a - b).abs() <= most, "{what}: {name}: {a} and {b}");
    }
    let apart = support::difference(&weights(found), &weights(expected));
    assert!(apart < 2e-4, "{what}: weights are {apart} apart");
}

/// Means over the tokens of a step, chosen ones.
const TOKEN_MEAN: &str = r#"{"loss":"orpo","nll_normalization":"token"}"#;
const TOKEN_MEAN_BESIDE_DPO: &str =
    r#"{"loss":"with_sft","weight":1,"normalization":"token","objective":{"loss":"dpo"}}"#;

#[test]
fn the_numbers_of_one_process() {
    let place = Place::new("llama");
    let row = |i: usize| {
        let turns = json!([
            {"role": "user", "content": format!("The sun is {i}")},
            {"role": "assistant", "content": "red ".repeat(1 + i % 3)},
        ]);
        format!("{}\n", json!({ "messages": turns }))
    };
    place.write("messages.jsonl", &(0..12).map(row).collect::<String>());
    let mut sample = place.command("--sample 4 --every-answer --answer-tokens 6 --out own");
    sample.args(["--score", "awk '{print length}'"]);
    place.finish("own", &mut sample);
    let unpaired = "--data unpaired.jsonl";
    let two_forwards = "--budget 120";
    for (i, arguments) in [
        String::new(),
        format!("--full {two_forwards}"),
        "--loss dpo --reference live --layout padded".to_owned(),
        format!("{unpaired} --loss kto"),
        format!("{unpaired} --loss bco {two_forwards}"),
        "--loss orpo".to_owned(),
        "--data messages.jsonl --loss sft".to_owned(),
        "--data ranked.jsonl --loss plackett_luce".to_owned(),
        "--loss bradley_terry".to_owned(),
        "--data own.jsonl --loss grpo".to_owned(),
        format!("--loss {TOKEN_MEAN}"),
        format!("--loss {TOKEN_MEAN_BESIDE_DPO} {two_forwards}"),
    ]
    .iter()
    .enumerate()
    {
        // Of a step of one example, most processes have none.
        let batch = if i % 2 == 0 { 4 } else { 1 };
        let arguments = format!(
            "{arguments} --batch {batch} --rate 0.003 --steps 6 --evaluate-every 3 --held-out 0.3"
        );
        let one = place.run(&format!("one{i}"), &arguments);
        for ranks in [2, 3] {
            let several = run(&place, ranks, &format!("of{ranks}-{i}"), &arguments);
            near(&several, &one, &format!("{ranks} processes, {arguments}"));
            let saved = several.text.matches("saved: ").count();
            assert_eq!(saved, 1, "one of them reports: {}", several.text);
        }
    }
}

/// Waits until a run has written so many lines of metrics.
fn wait_for(place: &Place, out: &str, lines: usize) {
    let metrics = place.path(&format!("{out}.run/metrics.jsonl"));
    let start = Instant::now();
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < lines {
        assert!(start.elapsed() < Duration::from_mins(1));
        thread::sleep(Duration::from_millis(1));
    }
}

/// The ids of the processes that `mpirun` has started, in the order of their ranks.
fn processes(mpirun: &Child) -> Vec<u32> {
    let parent = mpirun.id().to_string();
    let mut found: Vec<u32> = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let Ok(id) = entry.unwrap().file_name().into_string().unwrap().parse() else {
            continue;
        };
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let is_child = status
            .lines()
            .any(|line| line.strip_prefix("PPid:").map(str::trim) == Some(&parent));
        if is_child && status.contains("finetune") {
            found.push(id);
        }
    }
    found.sort_unstable();
    found
}

/// Starts a run of two processes, and sends a signal to the second one after some steps.
fn broken(place: &Place, out: &str, arguments: &str, signal: &str) -> (Output, Duration) {
    let mut command = mpirun(place, 2, &format!("{arguments} --out {out}"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn().unwrap();
    wait_for(place, out, 8);
    let second = processes(&child)[1].to_string();
    let sent = Command::new("kill").args([signal, &second]).status();
    assert!(sent.unwrap().success());
    let start = Instant::now();
    let done = child.wait_with_output().unwrap();
    (done, start.elapsed())
}

#[test]
fn a_process_that_breaks_ends_the_run_which_goes_on() {
    let place = Place::new("llama");
    let arguments = "--steps 80 --evaluate-every 4 --batch 3 --rate 0.003";
    let one = place.run("one", arguments);
    let two = run(&place, 2, "two", arguments);
    for (out, signal, text) in [
        ("killed", "-KILL", "process rank 1 with PID"),
        (
            "hangs",
            "-STOP",
            "1 of 2 workers came within 3s, without rank 1",
        ),
    ] {
        let (done, took) = broken(&place, out, &format!("{arguments} --timeout 3"), signal);
        let stopped = Run::new(place.path(out), &done);
        let is_whole = done.status.success() || stopped.out.exists();
        assert!(!is_whole, "{out}: {}: {}", done.status, stopped.text);
        assert!(stopped.text.contains(text), "{}", stopped.text);
        assert!(took < Duration::from_secs(20), "{took:?}");
        assert_eq!(stopped.checkpoints().len(), 1);
        for to in ["alone.run", "three.run"] {
            let mut copy = Command::new("cp");
            copy.arg("-r").args([stopped.folder(), place.path(to)]);
            assert!(copy.status().unwrap().success());
        }
        // On as many processes the same bytes.
        let again = run(&place, 2, out, &format!("{arguments} --resume"));
        assert!(again.text.contains("goes on after step"), "{}", again.text);
        assert_eq!(again.metrics(), two.metrics());
        let bytes = |run: &Run| fs::read(run.out.join("model.safetensors")).unwrap();
        assert!(bytes(&again) == bytes(&two), "{out}: other weights");
        // On another number the same numbers.
        let resume = format!("{arguments} --resume");
        near(&place.run("alone", &resume), &one, "goes on in one process");
        near(&run(&place, 3, "three", &resume), &one, "goes on in three");
        for name in ["alone", "three"] {
            for end in ["", ".run"] {
                fs::remove_dir_all(place.path(&format!("{name}{end}"))).unwrap();
            }
        }
    }
    near(&two, &one, "two processes");
}

/// The best weights are older than the checkpoint that the first process removes, and the others have
/// them as well.
#[test]
fn best_weights_from_before_a_break() {
    let place = Place::new("llama");
    // At this rate nothing is learnt after the first steps.
    let arguments = "--data unpaired.jsonl --loss kto --full --rate 1 --warm-up 0 --schedule constant --steps 80 --evaluate-every 2 --batch 3";
    let two = run(&place, 2, "two", arguments);
    let state = |run: &Run, name: &str| -> Value {
        let text = fs::read_to_string(run.folder().join(name).join("state.json"));
        serde_json::from_str(&text.unwrap()).unwrap()
    };
    let best = state(&two, "checkpoint-80")["best"]["step"]
        .as_u64()
        .unwrap();
    let (done, _) = broken(&place, "out", arguments, "-KILL");
    let stopped = Run::new(place.path("out"), &done);
    let last = stopped.checkpoints().pop().unwrap();
    let step = state(&stopped, &last)["step"].as_u64().unwrap();
    assert!(best <= step && step < 78, "{best}, {step}");
    let again = run(&place, 2, "out", &format!("{arguments} --resume"));
    assert_eq!(again.metrics(), two.metrics());
    let bytes = |run: &Run| fs::read(run.out.join("model.safetensors")).unwrap();
    assert!(bytes(&again) == bytes(&two));
}

#[test]
fn what_several_processes_do_not_do() {
    let place = Place::new("llama");
    fails(
        &place,
        2,
        "--loss aot",
        "of a whole step, which one process computes",
    );
    // The parts of a mixture do not get the tokens of the step.
    let mixture =
        format!(r#"--loss {{"loss":"mixture","parts":[{{"weight":1,"objective":{TOKEN_MEAN}}}]}}"#);
    fails(
        &place,
        2,
        &mixture,
        "of a whole step, which one process computes",
    );
    fails(
        &place,
        2,
        "--sample 2 --score true",
        "answers are drawn by one process",
    );
    // Another seed on the second one.
    let second = place.command("--seed 1 --out failed");
    let mut command = mpirun(&place, 1, "--out failed");
    command.arg(":").args(["-n", "1"]);
    command.arg(second.get_program()).args(second.get_args());
    place.fails_as(
        &mut command,
        "the processes of this run have different options, data or weights",
    );
    // Processes that a launcher has started, and MPI knows nothing of it.
    let mut command = place.command("--out failed");
    command.env("SLURM_STEP_NUM_TASKS", "2");
    place.fails_as(
        &mut command,
        "2 processes were started, and MPI finds another number",
    );
}
