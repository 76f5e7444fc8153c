//! Builds the static `rum-agent` that rum carries, see `src/payload`.
//!
//! It is a build of its own in a target directory of its own, `TARGET_DIR/rum-agent-static`:
//! another profile, no libc to load at run time, and one place whatever cargo does around it
//! (build, clippy, test, debug or release), so that it is compiled once and found fresh
//! afterwards. Nothing of the outer build may leak into it, neither clippy's nor
//! rust-analyzer's compiler wrapper nor variables that cargo sets for build scripts.
//!
//! `RUM_AGENT_BINARY=PATH` takes a finished binary instead.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What says where a finished agent is.
const BINARY: &str = "RUM_AGENT_BINARY";
/// Variables that cargo and those who call it set, and that would make the inner build another
/// one each time. What ends with an underscore is the start of a name.
const LEAKS: [&str; 22] = [
    "CARGO_BUILD_",
    "CARGO_CFG_",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_FEATURE_",
    "CARGO_INCREMENTAL",
    "CARGO_LLVM_COV",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_PRIMARY_PACKAGE",
    "CARGO_PROFILE_",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "DEBUG",
    "HOST",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTC_LINKER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
    "TARGET",
];

fn main() -> Result<()> {
    let out_dir = path("OUT_DIR")?;
    println!("cargo:rerun-if-env-changed={BINARY}");
    let agent = match env::var_os(BINARY) {
        Some(given) => {
            let given = PathBuf::from(given);
            println!("cargo:rerun-if-changed={}", given.display());
            given
        }
        None => build(&out_dir)?,
    };
    check(&agent)?;
    let carried = out_dir.join("rum-agent");
    fs::copy(&agent, &carried)?;
    println!("cargo:rustc-env=RUM_AGENT={}", carried.display());
    Ok(())
}

/// Builds the agent, or finds it built.
fn build(out_dir: &Path) -> Result<PathBuf> {
    let workspace = path("CARGO_MANIFEST_DIR")?.join("..");
    for source in ["Cargo.toml", "Cargo.lock", "rum-agent/src", "shared/src"] {
        println!(
            "cargo:rerun-if-changed={}",
            workspace.join(source).display()
        );
    }
    for manifest in ["rum-agent/Cargo.toml", "shared/Cargo.toml"] {
        println!(
            "cargo:rerun-if-changed={}",
            workspace.join(manifest).display()
        );
    }
    let target = env::var("TARGET")?;
    // Cargo marks the root of a target directory with this file.
    let target_dir = out_dir
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").exists())
        .unwrap_or(out_dir)
        .join("rum-agent-static");

    let mut cargo = Command::new(path("CARGO")?);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(leaks) {
            cargo.env_remove(name);
        }
    }
    // The outer build has written Cargo.lock and fetched everything that the agent needs, since
    // rum depends on it, too: nothing is to be changed or fetched here.
    let output = cargo
        .current_dir(&workspace)
        .args(["build", "--locked", "--offline", "--package", "rum-agent"])
        .args(["--bin", "rum-agent", "--profile", "agent"])
        .args(["--target", &target, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "the static rum-agent cannot be built ({}):\n{said}\n\
             hint: it needs the C library as an archive (package libc6-dev or glibc-static); \
             or name a finished agent: {BINARY}=PATH",
            output.status
        )
        .into());
    }
    Ok(target_dir.join(target).join("agent").join("rum-agent"))
}

/// Whether the variable `name` is one of [`LEAKS`].
fn leaks(name: &str) -> bool {
    LEAKS.iter().any(|leak| {
        if leak.ends_with('_') {
            name.starts_with(leak)
        } else {
            name == *leak
        }
    })
}

/// That `agent` is a program which needs nothing else to run, and, where it can be tried, runs.
fn check(agent: &Path) -> Result<()> {
    let wrong = |why: &str| Err(format!("{} {why}", agent.display()).into());
    match fs::read(agent).map(|elf| interpreter(&elf))? {
        None => return wrong("is not an ELF program"),
        Some(true) => return wrong("is not linked statically"),
        Some(false) => {}
    }
    if env::var("TARGET")? != env::var("HOST")? {
        return Ok(());
    }
    let output = Command::new(agent).arg("--version").output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && said.starts_with("rum-agent ") {
        Ok(())
    } else {
        wrong("does not run")
    }
}

/// Whether an ELF file asks for an interpreter (a program header PT_INTERP); `None` for what is
/// not one of 64 bits in little-endian order.
fn interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0u64, |n, byte| n << 8 | u64::from(*byte)),
        )
    };
    elf.starts_with(b"\x7fELF\x02\x01").then_some(())?;
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for i in 0..count {
        let at = usize::try_from(table.checked_add(i * size)?).ok()?;
        if number(at, 4)? == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

fn path(variable: &str) -> Result<PathBuf> {
    let value = env::var_os(variable).ok_or_else(|| format!("cargo did not set {variable}"))?;
    Ok(value.into())
}
