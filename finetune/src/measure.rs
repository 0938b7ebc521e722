//! Medians, seconds and peak memory, for examples and benchmarks that measure.

/// Returns the value in the middle, of two the larger one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns the result of a step and its seconds.
///
/// # Errors
///
/// As `step`.
pub fn timed<T, E>(step: impl FnOnce() -> Result<T, E>) -> Result<(T, f64), E> {
    let start = std::time::Instant::now();
    let result = step()?;
    Ok((result, start.elapsed().as_secs_f64()))
}

/// Returns the peak memory of a step beyond what was there before it, in MiB; none where the system
/// does not tell.
///
/// # Errors
///
/// As `step`.
pub fn peak_memory<E>(step: impl FnOnce() -> Result<(), E>) -> Result<Option<f64>, E> {
    // Forgets the peak of what was before.
    let forgotten = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let before = status("VmRSS");
    step()?;
    let over = |(before, peak)| peak - before;
    Ok(before.zip(status("VmHWM")).filter(|_| forgotten).map(over))
}

/// A line of `/proc/self/status`, in MiB.
fn status(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: f64 = line
        .trim_start_matches(':')
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    Some(kilobytes / 1024.0)
}

/// Runs this program again with `--memory which` beside its own arguments, as a process whose memory
/// nothing else has touched, and returns what it prints; none where it prints nothing.
pub fn memory_of(which: &str) -> Option<String> {
    let own = std::env::current_exe().ok()?;
    let mut command = std::process::Command::new(own);
    let arguments = std::env::args().skip(1);
    let output = command.args(arguments).args(["--memory", which]).output();
    let text = String::from_utf8_lossy(&output.ok()?.stdout)
        .trim()
        .to_owned();
    (!text.is_empty()).then_some(text)
}
