//! Runs that are killed, or whose disk fails, at each of their calls that change a file, and then go on:
//! everything is as without the break, and nothing is left over. What a kill cannot show is a loss of
//! power: for that, the order of the calls is checked. `scripts/crash.sh` runs these tests, since they
//! need `strace`.

#![cfg(target_os = "linux")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::thread;

use support::place::{Place, without_clock};

/// Calls that change a file or a folder; `openat` where it makes one.
const CALLS: &str = "chmod,copy_file_range,fallocate,fchmod,fchmodat,fdatasync,flock,fsync,ftruncate,link,\
                     linkat,mkdir,mkdirat,openat,pwrite64,pwritev,rename,renameat,renameat2,rmdir,sendfile,\
                     symlink,symlinkat,unlink,unlinkat,write,writev";

const TRAINING: &str =
    "--steps 4 --evaluate-every 2 --batch 2 --rank 1 --targets q_proj --budget 300 --out out";

/// A call, as `strace` writes it.
#[derive(Debug, Clone)]
struct Call {
    name: String,
    /// Its number among the calls of this name, from 1.
    number: usize,
    /// What it acts on, without the place's own path; nothing outside of the place.
    paths: Vec<PathBuf>,
    is_done: bool,
    /// Of the first thread, which does all that changes files.
    is_of_first: bool,
}

impl Call {
    /// The file that it changes, by what a user would call it.
    fn of(&self) -> &'static str {
        let path = self.paths.last().map(|path| path.to_string_lossy());
        match path.as_deref() {
            None => "what is printed",
            Some(path) if path.contains("reference") => "cache",
            Some(path) if path.contains("checkpoint") => "checkpoint",
            Some(path) if path.contains("metrics.jsonl") => "metrics",
            Some(path) if path.contains("saved") || path == "out" => "OUT",
            Some(path) if path.contains(".lock") => "lock",
            Some(path) if path.contains("jsonl") => "rows",
            Some(_) => "options, figure, folders",
        }
    }

    fn is(&self, names: &[&str]) -> bool {
        names.contains(&self.name.as_str())
    }
}

/// The calls of a log, in their order.
fn calls(log: &Path, place: &Path) -> Vec<Call> {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned();
    let thread_of = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let first = thread_of(&text);
    let mut numbers: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        let thread = thread_of(line);
        let Some((name, rest)) = line[thread.len()..].trim_start().split_once('(') else {
            continue;
        };
        if !CALLS.split(',').any(|call| call == name) {
            continue;
        }
        let paths = paths(name, rest, place);
        let makes = name != "openat" || rest.contains("O_CREAT");
        // strace counts those of each thread.
        let number = numbers
            .entry((thread.clone(), name.to_owned()))
            .or_default();
        *number += 1;
        let result = rest.rsplit_once(" = ").map_or("?", |(_, result)| result);
        if makes {
            calls.push(Call {
                is_of_first: thread == first,
                name: name.to_owned(),
                number: *number,
                paths,
                is_done: !result.starts_with(['-', '?']),
            });
        }
    }
    calls
}

/// The paths of a call, of those in the place.
fn paths(name: &str, rest: &str, place: &Path) -> Vec<PathBuf> {
    // Descriptors are followed by <their paths>, and names are relative to such a one.
    let mut folders = Vec::new();
    let mut names = Vec::new();
    let mut rest = rest;
    while let Some(at) = rest.find(['<', '"']) {
        let end = if rest.as_bytes()[at] == b'<' {
            '>'
        } else {
            '"'
        };
        let Some(length) = rest[at + 1..].find(end) else {
            break;
        };
        let text = Path::new(&rest[at + 1..at + 1 + length]);
        if end == '>' {
            folders.push(text);
        } else {
            names.push(folders.last().unwrap_or(&place).join(text));
        }
        rest = &rest[at + length + 2..];
    }
    let of_names = [
        "chmod",
        "fchmodat",
        "link",
        "linkat",
        "mkdir",
        "mkdirat",
        "openat",
        "rename",
        "renameat",
        "renameat2",
        "rmdir",
        "symlink",
        "symlinkat",
        "unlink",
        "unlinkat",
    ];
    let found: Vec<PathBuf> = if of_names.contains(&name) {
        names
    } else {
        let number = usize::from(name == "copy_file_range");
        folders
            .get(number)
            .map(|path| path.to_path_buf())
            .into_iter()
            .collect()
    };
    let within = found
        .iter()
        .filter_map(|path| path.strip_prefix(place).ok());
    within.map(Path::to_owned).collect()
}

/// What runs have written, by its path.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A place where one run after the other is broken.
struct Scene {
    place: Place,
    log: PathBuf,
    arguments: String,
    /// What there is before a run.
    before: Files,
    /// What a run leaves that nothing breaks.
    whole: Files,
    calls: Vec<Call>,
}

impl Scene {
    /// A run from nothing.
    fn new(arguments: &str) -> Self {
        Self::of(Place::new("llama"), arguments)
    }

    /// Rows of the model's own answers. The judge is a model: to a command another thread would write.
    fn sampling() -> Self {
        let place = Place::new("llama");
        place.run("judge", "--loss bradley_terry");
        fs::remove_dir_all(place.path("judge.run")).unwrap();
        Self::of(
            place,
            "--sample 3 --answer-tokens 4 --temperature 1 --score judge --out out",
        )
    }

    fn of(place: Place, arguments: &str) -> Self {
        let root = place.0.path().canonicalize().unwrap();
        let mut scene = Self {
            log: root.join("log"),
            place,
            arguments: arguments.to_owned(),
            before: Files::new(),
            whole: Files::new(),
            calls: Vec::new(),
        };
        let done = scene.run("", &[]);
        assert!(done.status.success(), "{}", text(&done));
        scene.calls = scene.calls();
        scene.whole = scene.files();
        scene
    }

    /// The same, where the run goes on from its first checkpoint, with lines of metrics behind it and
    /// scratch beside it.
    fn resumed() -> Self {
        let mut scene = Self::new(TRAINING);
        let second = scene.calls.iter().find(|call| {
            let is_name = |path: &PathBuf| path.ends_with("checkpoint-4");
            call.is(&["rename"]) && call.paths.iter().any(is_name)
        });
        scene.break_at(&second.unwrap().clone(), "signal=KILL", "");
        scene.before = scene.files();
        assert_eq!(scene.checkpoint(), Some(2));
        let done = scene.run("--resume", &[]);
        assert!(done.status.success(), "{}", text(&done));
        scene.calls = scene.calls();
        scene
    }

    fn root(&self) -> PathBuf {
        self.log.parent().unwrap().to_owned()
    }

    /// The calls of an unbroken run.
    fn calls(&self) -> Vec<Call> {
        let mut calls = calls(&self.log, &self.root());
        for call in &calls {
            assert!(call.is_of_first || call.paths.is_empty(), "{call:?}");
        }
        calls.retain(|call| call.is_of_first);
        calls
    }

    /// The command of a scene under `strace`.
    fn run(&self, more: &str, inject: &[&str]) -> Output {
        let program = self.place.command(&format!("{} {more}", self.arguments));
        let mut command = Command::new("strace");
        // Not with --seccomp-bpf: signals of strace 6.1 are not delivered then.
        command.args(["-f", "-qq", "-y", "-s", "0", "-e", "signal=none", "-o"]);
        command
            .arg(&self.log)
            .args(["-e", &format!("trace={CALLS}")]);
        for inject in inject {
            command.args(["-e", inject]);
        }
        command.arg(program.get_program()).args(program.get_args());
        command.current_dir(self.root()).output().unwrap()
    }

    /// Restores what there was before, and breaks a run at a call.
    fn break_at(&self, call: &Call, how: &str, more: &str) -> Output {
        self.restore();
        let inject = format!("inject={}:{how}:when={}", call.name, call.number);
        self.run(more, &[&inject])
    }

    fn restore(&self) {
        for entry in fs::read_dir(self.root()).unwrap() {
            let path = entry.unwrap().path();
            if is_output(&path.file_name().unwrap().to_string_lossy()) {
                if path.is_dir() {
                    fs::remove_dir_all(path).unwrap();
                } else {
                    fs::remove_file(path).unwrap();
                }
            }
        }
        for (name, bytes) in &self.before {
            let path = self.root().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    fn files(&self) -> Files {
        let mut files = Files::new();
        for entry in fs::read_dir(self.root()).unwrap() {
            let path = entry.unwrap().path();
            if is_output(&path.file_name().unwrap().to_string_lossy()) {
                self.add(&path, &mut files);
            }
        }
        files
    }

    fn add(&self, path: &Path, files: &mut Files) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                self.add(&entry.unwrap().path(), files);
            }
        } else {
            let name = path.strip_prefix(self.root()).unwrap().to_owned();
            let mut bytes = fs::read(path).unwrap();
            if name.ends_with("metrics.jsonl") {
                bytes = without_clock(str::from_utf8(&bytes).unwrap()).into_bytes();
            }
            files.insert(name, bytes);
        }
    }

    /// The step of the last checkpoint.
    fn checkpoint(&self) -> Option<u64> {
        let entries = fs::read_dir(self.root().join("out.run")).ok()?;
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let step = |name: String| name.strip_prefix("checkpoint-")?.parse().ok();
        names.filter_map(step).max()
    }

    /// The same command again, as a user gives it; the result is compared with that of an unbroken run.
    fn go_on(&self, broken: &str, said: &str) -> Went {
        let there = ["out", "out.jsonl"]
            .iter()
            .any(|name| self.root().join(name).exists());
        let checkpoint = self.checkpoint();
        let more = if checkpoint.is_some() { "--resume" } else { "" };
        let mut program = self.place.command(&format!("{} {more}", self.arguments));
        let done = program.current_dir(self.root()).output().unwrap();
        // A run does not fail for its figure.
        let has_figure = !said.contains("no figure: ");
        let said = text(&done);
        if there {
            assert!(!done.status.success(), "{broken}: {said}");
            assert!(said.contains("is there already"), "{broken}: {said}");
        } else {
            assert!(done.status.success(), "{broken}: {said}");
            if let Some(step) = checkpoint {
                assert!(
                    said.contains(&format!("goes on after step {step}")),
                    "{broken}: {said}"
                );
            }
        }
        let now = self.files();
        let mut went = Went::default();
        let figure = Path::new("out.run/metrics.svg");
        for (name, bytes) in self
            .whole
            .iter()
            .filter(|(name, _)| has_figure || *name != figure)
        {
            let found = now.get(name);
            // Identities of parameters are random in a checkpoint.
            let is_same = found.is_some_and(|found| {
                found == bytes || has_identities(name) && found.len() == bytes.len()
            });
            if !is_same {
                eprintln!("{broken}: {} is not the same", name.display());
                went.lost += bytes.len();
            }
        }
        for name in now.keys().filter(|name| !self.whole.contains_key(*name)) {
            eprintln!("{broken}: {} is left", name.display());
            went.left += 1;
        }
        went
    }

    /// What a killed run leaves that only it could use.
    fn scratch(&self) -> usize {
        let files = self.files();
        let places: BTreeSet<_> = files.keys().filter_map(|path| scratch_of(path)).collect();
        places.len()
    }
}

/// Bytes that are not those of an unbroken run, and files that it does not have.
#[derive(Debug, Default)]
struct Went {
    lost: usize,
    left: usize,
}

fn has_identities(name: &Path) -> bool {
    name.extension() == Some("bpk".as_ref()) && name.to_string_lossy().contains("checkpoint-")
}

fn is_output(name: &str) -> bool {
    name.trim_start_matches('.').starts_with("out")
}

/// The scratch that a path is, or is in; the lock is none.
fn scratch_of(path: &Path) -> Option<PathBuf> {
    let parts: Vec<_> = path.iter().collect();
    let is_scratch = |part: &&std::ffi::OsStr| {
        let part = part.to_string_lossy();
        part.ends_with(".tmp") || part.starts_with('.') && !part.ends_with(".lock")
    };
    let at = parts.iter().position(is_scratch)?;
    Some(parts[..=at].iter().collect())
}

fn text(done: &Output) -> String {
    let all = [&done.stdout[..], &done.stderr].concat();
    String::from_utf8_lossy(&all).into_owned()
}

/// A row of the table.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    broken: usize,
    with_scratch: usize,
    lost: usize,
    left: usize,
}

/// Breaks runs at all calls that `how` says something for, or (of many) at some of them, in several scenes
/// at once, and prints a table.
fn sweep(
    title: &str,
    scene: impl Fn() -> Scene + Sync,
    more: &str,
    how: impl Fn(&Call) -> Option<&'static str> + Sync,
    after: impl Fn(&Scene, &Call, &Output) + Sync,
) {
    let all_of_them = std::env::var_os("BURN_PREFERENCE_CRASH").is_some();
    let workers = thread::available_parallelism().map_or(1, Into::into).min(8);
    let counts: Mutex<BTreeMap<&str, Count>> = Mutex::default();
    let all = Mutex::new(0);
    thread::scope(|scope| {
        for worker in 0..workers {
            let (scene, how, after, counts, all) = (&scene, &how, &after, &counts, &all);
            scope.spawn(move || {
                let scene = scene();
                let calls = scene
                    .calls
                    .iter()
                    .filter_map(|call| Some((call, how(call)?)));
                let calls: Vec<_> = calls.collect();
                *all.lock().unwrap() = calls.len();
                let is_taken = |at: usize, call: &Call| {
                    all_of_them
                        || calls.len() < 30
                        || at.is_multiple_of(29)
                        || call.is(&["flock"])
                        || call.is(&["rename"]) && scratch_of(call.paths.last().unwrap()).is_none()
                };
                let taken = calls
                    .iter()
                    .enumerate()
                    .filter(|(at, (call, _))| is_taken(*at, call));
                for (_, (call, how)) in taken.skip(worker).step_by(workers) {
                    let done = scene.break_at(call, how, more);
                    after(&scene, call, &done);
                    let with_scratch = usize::from(scene.scratch() > 0);
                    let went = scene.go_on(&format!("{title}: {how} at {call:?}"), &text(&done));
                    let mut counts = counts.lock().unwrap();
                    let count = counts.entry(call.of()).or_default();
                    count.broken += 1;
                    count.with_scratch += with_scratch;
                    count.lost += went.lost;
                    count.left += went.left;
                }
            });
        }
    });
    println!("\n{title}, of {} calls:\n", all.into_inner().unwrap());
    println!("| at | broken | scratch before it goes on | bytes lost | files left over |");
    println!("|---|---|---|---|---|");
    let counts = counts.into_inner().unwrap();
    let mut sum = Count::default();
    let line = |name: &str, c: Count| {
        let Count {
            broken,
            with_scratch,
            lost,
            left,
        } = c;
        println!("| {name} | {broken} | {with_scratch} | {lost} | {left} |");
    };
    for (name, count) in counts {
        line(name, count);
        sum.broken += count.broken;
        sum.with_scratch += count.with_scratch;
        sum.lost += count.lost;
        sum.left += count.left;
    }
    line("all", sum);
    assert!(sum.broken > 0 && sum.lost == 0 && sum.left == 0);
}

/// Kills at every call.
fn kills(title: &str, scene: impl Fn() -> Scene + Sync, more: &str) {
    let kill = |_: &Call| Some("signal=KILL");
    sweep(title, scene, more, kill, |scene, call, done| {
        assert_eq!(done.status.signal(), Some(9), "{call:?}: {}", text(done));
        // A checkpoint that was there is there.
        let done = calls(&scene.log, &scene.root());
        let renamed = done
            .iter()
            .filter(|call| call.is(&["rename"]) && call.is_done);
        let step = |call: &Call| {
            let name = call.paths.last()?.file_name()?.to_str()?;
            name.strip_prefix("checkpoint-")?.parse::<u64>().ok()
        };
        let before = if scene.before.is_empty() {
            None
        } else {
            Some(2)
        };
        assert_eq!(
            scene.checkpoint(),
            renamed.filter_map(step).max().max(before)
        );
    });
}

/// A disk that fails at every call: full where something is written, broken where it is synced, read-only
/// where names change.
fn failures(title: &str, scene: impl Fn() -> Scene + Sync, more: &str) {
    let how = |call: &Call| {
        let is_in_place = !call.paths.is_empty();
        // Without a lock, what another run has left stays.
        let is_out = call.is(&["flock"]) && !more.is_empty();
        (is_in_place && !is_out).then_some(match call.name.as_str() {
            "fsync" | "fdatasync" => "error=EIO",
            "flock" => "error=ENOLCK",
            "write" | "pwrite64" | "writev" | "copy_file_range" | "ftruncate" => "error=ENOSPC",
            _ => "error=EROFS",
        })
    };
    sweep(title, scene, more, how, |scene, call, done| {
        let said = text(done);
        assert!(!said.contains("panicked"), "{call:?}: {said}");
        let errors = [
            "os error 5)",
            "os error 28)",
            "os error 30)",
            "os error 37)",
        ];
        let is_named = errors.iter().any(|error| said.contains(error));
        // The figure can be drawn again; and who has no lock goes on without.
        let is_left_out = said.contains("no figure: ") || said.contains("look: no lock on ");
        // What dropping a lock says, nobody hears.
        let is_unheard = call.of() == "lock" && call.is(&["unlink"]);
        assert!(is_named || is_unheard, "{call:?}: {said}");
        let went_on = done.status.success();
        assert_eq!(went_on, is_left_out || is_unheard, "{call:?}: {said}");
        if !call.is(&["unlink", "unlinkat"]) && scene.before.is_empty() {
            assert_eq!(scene.scratch(), 0, "{call:?}: {said}");
        }
    });
}

#[test]
#[ignore = "needs strace: scripts/crash.sh"]
fn kills_of_a_run() {
    kills("kills of a run", || Scene::new(TRAINING), "");
}

#[test]
#[ignore = "needs strace: scripts/crash.sh"]
fn kills_of_a_run_that_goes_on() {
    kills("kills of a run that goes on", Scene::resumed, "--resume");
}

#[test]
#[ignore = "needs strace: scripts/crash.sh"]
fn kills_while_rows_are_written() {
    kills("kills of --sample", Scene::sampling, "");
}

#[test]
#[ignore = "needs strace: scripts/crash.sh"]
fn failures_of_a_run() {
    failures("a failing disk under a run", || Scene::new(TRAINING), "");
}

#[test]
#[ignore = "needs strace: scripts/crash.sh"]
fn failures_of_a_run_that_goes_on() {
    let title = "a failing disk under a run that goes on";
    failures(title, Scene::resumed, "--resume");
}

#[test]
#[ignore = "needs strace: scripts/crash.sh"]
fn failures_while_rows_are_written() {
    failures("a failing disk under --sample", Scene::sampling, "");
}

/// What a loss of power may take, call by call: what was written and not synced, names that were given
/// and whose folder was not synced.
#[derive(Default)]
struct Unsynced {
    files: BTreeSet<PathBuf>,
    folders: BTreeSet<PathBuf>,
    /// Of the checks: names that were given, older checkpoints that were removed.
    published: usize,
    removed: usize,
}

impl Unsynced {
    fn see(&mut self, call: &Call) {
        let Some(path) = call.paths.last() else {
            return;
        };
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        match call.name.as_str() {
            "write" | "pwrite64" | "writev" | "copy_file_range" | "ftruncate" | "chmod"
            | "fchmod" => {
                self.files.insert(path.clone());
            }
            "openat" => {
                self.files.insert(path.clone());
                self.folders.insert(folder);
            }
            "mkdir" => {
                self.folders.extend([path.clone(), folder]);
            }
            "fsync" | "fdatasync" => {
                self.files.remove(path);
                self.folders.remove(path);
            }
            "rename" | "renameat" => {
                let from = &call.paths[0];
                let is_scratch = scratch_of(path).is_some();
                for set in [&mut self.files, &mut self.folders] {
                    let under: Vec<_> = set
                        .iter()
                        .filter(|at| at.starts_with(from))
                        .cloned()
                        .collect();
                    assert!(
                        is_scratch || under.is_empty(),
                        "{call:?}: {under:?} are not synced"
                    );
                    for at in under {
                        set.remove(&at);
                        // Joined with nothing, a path would end with a slash.
                        let rest = at.strip_prefix(from).unwrap();
                        let at = if rest.as_os_str().is_empty() {
                            path.clone()
                        } else {
                            path.join(rest)
                        };
                        set.insert(at);
                    }
                }
                self.folders.insert(folder);
                self.published += usize::from(!is_scratch);
                let is_checkpoint = path.to_string_lossy().contains("/checkpoint-");
                // The lines of its steps.
                let lines = Path::new("out.run/metrics.jsonl");
                assert!(
                    !(is_checkpoint && self.files.contains(lines)),
                    "{call:?}: {} is not synced",
                    lines.display()
                );
            }
            "unlink" | "unlinkat" | "rmdir" => {
                self.files.remove(path);
                if scratch_of(path).is_none() && !path.ends_with(".out.lock") {
                    let waits: Vec<_> = self
                        .folders
                        .iter()
                        .filter(|at| scratch_of(at).is_none())
                        .collect();
                    assert!(waits.is_empty(), "{call:?}: {waits:?} are not synced");
                    self.removed += 1;
                }
            }
            _ => {}
        }
    }

    /// Nothing that was given its name waits for the disk.
    fn ends(&self) {
        let waits = self.files.iter().chain(&self.folders);
        let waits: Vec<_> = waits.filter(|at| !at.ends_with(".out.lock")).collect();
        assert!(waits.is_empty(), "{waits:?} are not synced");
    }
}

#[test]
#[ignore = "needs strace: scripts/crash.sh"]
fn calls_of_a_loss_of_power() {
    // Options, five times the cache, metrics, two checkpoints, figure, what is saved.
    let all = [
        (Scene::new(TRAINING), 11, 5),
        (Scene::new(&format!("{TRAINING} --save adapter")), 11, 5),
        (Scene::resumed(), 5, 5),
        (Scene::sampling(), 1, 0),
    ];
    for (scene, published, removed) in all {
        let mut unsynced = Unsynced::default();
        for call in scene.calls.iter().filter(|call| call.is_done) {
            unsynced.see(call);
        }
        unsynced.ends();
        assert_eq!([unsynced.published, unsynced.removed], [published, removed]);
        let count = scene.calls.len();
        println!(
            "{count} calls: {published} names given after a sync of what they name, and kept by one"
        );
    }
}
