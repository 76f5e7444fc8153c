//! From a [`Spec`] to a running machine: checks this host, makes the files, starts the processes.
//!
//! A test of KVM comes first (`kvm`), but only QEMU's own start shows whether KVM works and whether
//! a CID is free. So the start itself is the probe: QEMU answers on QMP only when the machine is
//! set up. If it exits before that, rum starts it once more with what its last log lines suggest.
//!
//! A [`Launcher`] keeps the settings that worked, and starts the same machine again when its guest
//! has rebooted: with its disk, its logs and its CID.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rum_shared::text::clean;
use tokio::process::Command;

use super::arch::Arch;
use super::command::{self, Device, Engine, Files, Machine, SANDBOX};
use super::firmware::Firmware;
use super::given::{read_key, read_text};
use super::process::Process;
use super::qmp::Qmp;
use super::spec::{Accel, Boot, Spec, SshKey};
use super::state::StateDir;
use super::{firmware, kvm, log, overlay};
use crate::guest::payload;
use crate::guest::progress::{Progress, Tell};
use crate::guest::{GuestError, GuestSpec};
use crate::runtime_dir::RuntimeDir;

/// QEMU sets a machine up in less than a second; a loaded machine gets more.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Interval of checking for a socket that is about to appear.
const LOOK: Duration = Duration::from_millis(10);
/// Most starts: one may be lost to KVM, and CIDs are drawn from billions.
const ATTEMPTS: usize = 4;
/// Lines of QEMU's log that an error shows.
const LOG_LINES: usize = 5;
/// Most characters of a path that are shown.
const MAX_PATH: usize = 300;
/// The vsock device for hosts without /dev/vhost-vsock.
const VSOCK_DEVICE: &str = "vhost-device-vsock";
/// QEMU's error when another VM has the CID.
const CID_TAKEN: &str = "set guest cid";

/// A running machine.
pub type Running = (Process, Qmp);

/// How to start a machine, at first and after each of its reboots.
#[derive(Debug)]
pub struct Launcher {
    name: String,
    spec: Spec,
    arch: Arch,
    engine: Engine,
    sandbox: bool,
    device: Device,
    /// The device's program, if it has one.
    device_program: Option<PathBuf>,
    firmware: Option<Firmware>,
    files: Files,
    dir: Arc<RuntimeDir>,
    state: StateDir,
}

/// Starts the VM for the first time.
pub async fn start(
    guest: &GuestSpec,
    spec: &Spec,
    dir: &Arc<RuntimeDir>,
    state: &StateDir,
    tell: &Tell,
) -> Result<(Launcher, Running), GuestError> {
    let arch = arch()?;
    let sandbox = can_sandbox(arch.program()).await?;
    let (device, device_program) = choose_device()?;
    let files = files(dir, state);
    let inputs = Inputs::of(spec, arch)?;
    prepare(guest, spec, &inputs, state, tell).await?;
    let (engine, mut because) = choose_engine(spec.accel).await?;
    let mut launcher = Launcher {
        name: guest.name.clone(),
        spec: spec.clone(),
        arch,
        engine,
        sandbox,
        device,
        device_program,
        firmware: inputs.firmware,
        files,
        dir: dir.clone(),
        state: state.clone(),
    };
    for attempt in 1.. {
        if attempt == 1 || launcher.engine != engine {
            tell.say(Progress::Booting {
                engine: launcher.engine.name(),
                because: because.clone(),
            });
        }
        let log = launcher.new_log()?;
        let (ended, said) = match launcher.launch(log).await? {
            Launch::Runs(running) => return Ok((launcher, *running)),
            Launch::Ended(ended, said) => (ended, said),
        };
        let last = said.last().cloned().unwrap_or_default();
        let again = match (launcher.device, launcher.engine, spec.accel) {
            (Device::Vhost { .. }, _, _) if last.contains(CID_TAKEN) => {
                launcher.device = Device::Vhost { cid: draw_cid() };
                true
            }
            (_, Engine::Kvm, Accel::Auto) => {
                launcher.engine = Engine::Tcg;
                because = Some(format!("KVM does not work here ({ended})"));
                true
            }
            _ => false,
        };
        if !again || attempt == ATTEMPTS {
            return Err(launcher.did_not_start(&ended, said));
        }
        tracing::info!(ended, last, "QEMU did not start, trying in another way");
    }
    unreachable!("the loop returns at its last attempt")
}

impl Launcher {
    pub fn engine(&self) -> Engine {
        self.engine
    }

    pub fn device(&self) -> Device {
        self.device
    }

    /// Starts the machine again after its end, unchanged. Its vsock device is new: a device that
    /// outlives its guest's driver may not survive it (see `mod`).
    pub async fn restart(&self) -> Result<Running, GuestError> {
        match self.launch(self.log()?).await? {
            Launch::Runs(running) => Ok(*running),
            Launch::Ended(ended, said) => Err(self.did_not_start(&ended, said)),
        }
    }

    fn did_not_start(&self, ended: &str, said: Vec<String>) -> GuestError {
        GuestError::vm(format!("QEMU did not start: {ended}"))
            .with_hint(format!(
                "its last words, all of which are in {}",
                self.state.qemu_log().display()
            ))
            .with_lines(said)
    }

    /// The processes' log, to append to.
    fn log(&self) -> Result<fs::File, GuestError> {
        let path = self.state.qemu_log();
        log::open(&path)
            .map_err(|error| GuestError::vm(format!("cannot write {}: {error}", path.display())))
    }

    /// As [`Launcher::log`], emptied.
    fn new_log(&self) -> Result<fs::File, GuestError> {
        let path = self.state.qemu_log();
        log::create(&path)
            .map_err(|error| GuestError::vm(format!("cannot write {}: {error}", path.display())))
    }

    async fn launch(&self, log: fs::File) -> Result<Launch, GuestError> {
        let files = &self.files;
        for socket in [&files.qmp, &files.console, &files.vhost, &files.vsock] {
            // Left over from an earlier attempt or boot.
            let _ = fs::remove_file(socket);
        }
        let mut programs = Vec::new();
        if let (Device::User, Some(program)) = (self.device, &self.device_program) {
            programs.push(command::vsock_device(program, files));
        }
        programs.push(command::qemu(&Machine {
            name: &self.name,
            arch: self.arch,
            spec: &self.spec,
            engine: self.engine,
            sandbox: self.sandbox,
            device: self.device,
            firmware: self.firmware.as_ref(),
            files,
        }));
        let mut process = Process::start(&self.dir, &programs, log)?;
        let set_up = async {
            if programs.len() > 1 {
                until_there(&mut process, &files.vhost).await?;
                process.start_next().await;
            }
            loop {
                tokio::select! {
                    ended = process.ended() => return Err(ended),
                    qmp = Qmp::connect(&files.qmp) => match qmp {
                        Ok(qmp) => return Ok(qmp),
                        Err(error) => tracing::trace!(%error, "QMP does not answer yet"),
                    }
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        match tokio::time::timeout(START_DEADLINE, set_up).await {
            Ok(Ok(qmp)) => Ok(Launch::Runs(Box::new((process, qmp)))),
            Ok(Err(ended)) => Ok(Launch::Ended(
                ended,
                log::tail(&self.state.qemu_log(), LOG_LINES),
            )),
            Err(_) => Err(GuestError::vm(format!(
                "QEMU did not answer within {} s",
                START_DEADLINE.as_secs()
            ))
            .with_hint(format!("{} may say why", self.state.qemu_log().display()))),
        }
    }
}

fn files(dir: &RuntimeDir, state: &StateDir) -> Files {
    Files {
        qmp: dir.qmp_socket(),
        console: dir.console_socket(),
        console_log: state.console_log(),
        vhost: dir.vhost_socket(),
        vsock: dir.vsock_socket(),
        initramfs: state.initramfs(),
        uefi_vars: state.uefi_vars(),
        overlay: state.overlay(),
        seed: state.seed(),
    }
}

/// Whether this QEMU knows `-sandbox`; an error if there is none.
async fn can_sandbox(program: &str) -> Result<bool, GuestError> {
    let mut command = Command::new(program);
    command.args(["-sandbox", SANDBOX, "-version"]);
    let output = command.kill_on_drop(true).output().await;
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => GuestError::vm(format!("{program} is not installed")).with_hint(
            "install QEMU: `apt install qemu-system-x86` (-arm on aarch64), or `dnf install \
             qemu-kvm`",
        ),
        _ => GuestError::vm(format!("cannot run {program}: {error}")),
    })?;
    Ok(output.status.success())
}

/// The vsock device, with its program if it has one.
fn choose_device() -> Result<(Device, Option<PathBuf>), GuestError> {
    let vhost = Path::new("/dev/vhost-vsock");
    let error = match fs::File::options().read(true).write(true).open(vhost) {
        Ok(_) => return Ok((Device::Vhost { cid: draw_cid() }, None)),
        Err(error) => error,
    };
    let program = in_path(VSOCK_DEVICE).ok_or_else(|| {
        GuestError::vm(format!(
            "there is no vsock for the VM: cannot open {} ({error}), and there is no \
             {VSOCK_DEVICE}",
            vhost.display()
        ))
        .with_hint(
            "load it with `modprobe vhost_vsock` and let this user open it (group `kvm`), or \
             `cargo install --locked vhost-device-vsock`",
        )
    })?;
    Ok((Device::User, Some(program)))
}

/// A CID that is almost certainly free. Below 2^31, where no tool mistakes it for a negative
/// number.
fn draw_cid() -> u32 {
    fastrand::u32(3..1 << 31)
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let candidates = std::env::split_paths(&path).map(|dir| dir.join(program));
    let executable = |path: &PathBuf| {
        rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
    };
    candidates
        .filter(executable)
        .find_map(|path| std::path::absolute(path).ok())
}

/// The engine to try first, and why no faster one.
async fn choose_engine(accel: Accel) -> Result<(Engine, Option<String>), GuestError> {
    if accel == Accel::Tcg {
        return Ok((Engine::Tcg, Some("as rum.toml says".to_owned())));
    }
    match kvm::works().await {
        Ok(()) => Ok((Engine::Kvm, None)),
        Err(why) if accel == Accel::Auto => Ok((Engine::Tcg, Some(why))),
        Err(why) => Err(GuestError::vm(why).with_hint(
            "load the module `kvm_intel` or `kvm_amd`, join the group `kvm`, or write \
             `accel = \"auto\"`",
        )),
    }
}

/// Why this machine cannot start the VM: the errors of `start`.
pub async fn in_the_way(spec: &Spec) -> Vec<GuestError> {
    let arch = match arch() {
        Ok(arch) => arch,
        Err(error) => return vec![error],
    };
    let mut found = Vec::new();
    found.extend(can_sandbox(arch.program()).await.err());
    found.extend(choose_device().err());
    found.extend(Inputs::of(spec, arch).err());
    if let Boot::Image(image) = &spec.boot {
        found.extend(overlay::look(image, spec.disk_mib).await.err());
    }
    if spec.accel == Accel::Kvm {
        found.extend(choose_engine(spec.accel).await.err());
    }
    found
}

/// This machine's architecture.
fn arch() -> Result<Arch, GuestError> {
    let name = std::env::consts::ARCH;
    Arch::named(name).ok_or_else(|| {
        GuestError::vm(format!("no VMs on {name} yet"))
            .with_hint("boot one yourself, and use kind `vsock` or `unix`")
    })
}

/// Files of a VM besides its disk.
struct Inputs {
    firmware: Option<Firmware>,
    user_data: Option<String>,
    ssh_key: Option<String>,
}

impl Inputs {
    fn of(spec: &Spec, arch: Arch) -> Result<Self, GuestError> {
        let uefi = match &spec.boot {
            Boot::Image(_) => spec.uefi.unwrap_or(arch.boots_by_uefi()),
            Boot::Kernel { kernel, initrd, .. } => {
                for file in initrd.iter().chain([kernel]) {
                    fs::File::open(file).map_err(|error| {
                        GuestError::vm(format!("cannot read {}: {error}", file.display()))
                            .with_hint("paths in [guest] start at the directory of rum.toml")
                    })?;
                }
                false
            }
        };
        Ok(Self {
            firmware: uefi.then(|| firmware::find(arch)).transpose()?,
            user_data: spec.user_data.as_deref().map(read_text).transpose()?,
            ssh_key: match &spec.ssh_key {
                None => None,
                Some(SshKey::Text(key)) => Some(key.clone()),
                Some(SshKey::File(file)) => Some(read_key(file)?),
            },
        })
    }
}

/// Makes what the machine boots from.
async fn prepare(
    guest: &GuestSpec,
    spec: &Spec,
    inputs: &Inputs,
    state: &StateDir,
    tell: &Tell,
) -> Result<(), GuestError> {
    let payload_failed = |error: io::Error| {
        GuestError::vm(format!("cannot put the agent beside the guest: {error}"))
    };
    // A predecessor's console output must not count as this boot's.
    log::create(&state.console_log()).map_err(|error| {
        let path = state.console_log();
        GuestError::vm(format!("cannot write {}: {error}", path.display()))
    })?;
    match &spec.boot {
        Boot::Kernel { initrd, .. } => {
            payload::initramfs(initrd.as_deref(), &state.initramfs()).map_err(payload_failed)
        }
        Boot::Image(image) => {
            let overlay = overlay::prepare(image, state, guest.reset).await?;
            let firmware = inputs.firmware.as_ref();
            if let Some(template) = firmware.and_then(|firmware| firmware.vars.as_ref()) {
                firmware::prepare(template, &state.uefi_vars(), overlay.fresh)?;
            }
            if let Some(mib) = spec.disk_mib {
                overlay::grow(&state.overlay(), mib).await?;
            }
            tell.say(Progress::Overlay {
                image: clean(&image.to_string_lossy(), MAX_PATH),
                fresh: overlay.fresh,
            });
            if overlay.fresh {
                state.ssh().forget();
            }
            let own = state.ssh().make_key(&guest.name).await;
            let own = own
                .inspect_err(|why| tracing::warn!("`rum ssh` has no key for this guest: {why}"))
                .ok();
            let keys: Vec<_> = inputs
                .ssh_key
                .iter()
                .chain(&own)
                .map(String::as_str)
                .collect();
            let seed = payload::Seed {
                name: Some(&guest.name),
                instance: &overlay.instance,
                user_data: inputs.user_data.as_deref(),
                ssh_keys: &keys,
            };
            payload::seed_disk(&seed, &state.seed()).map_err(payload_failed)
        }
    }
}

/// Result of a start.
enum Launch {
    /// The machine runs.
    Runs(Box<Running>),
    /// How it ended, and the last lines of its log.
    Ended(String, Vec<String>),
}

/// Waits for the socket of a program that was just started; Err: how the program ended instead.
async fn until_there(process: &mut Process, socket: &Path) -> Result<(), String> {
    let appears = async {
        while !socket.exists() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        ended = process.ended() => Err(ended),
        () = appears => Ok(()),
    }
}
