//! `rum agent`: the embedded agent, for VMs that rum did not start.
//!
//! Installing takes three commands, and the printed commands are those that run. The files go
//! through the home directory, since only the last command needs root and may ask for a password.

mod seed;

use std::io::{self, IsTerminal, Write};
use std::process::{Child, Command, Stdio};

use rum_shared::text::clean;

use crate::VERSION;
use crate::cli::agent::{AgentCommand, InstallArgs};
use crate::error::RumError;
use crate::exit;
use crate::guest::libvirt::{self, Given};
use crate::guest::payload;
use crate::guest::payload::{AGENT, INSTALLER};

/// Longest name of a domain that is shown, in characters.
const MAX_DOMAIN: usize = 100;
/// Placeholder for a destination that was not named.
const SOME_VM: &str = "root@VM";

/// Runs `rum agent`.
///
/// # Errors
/// In the user's terms: a failed write to stdout, a failed step.
pub fn run(command: &AgentCommand) -> Result<u8, RumError> {
    match command {
        AgentCommand::Install(args) => install(args)?,
        AgentCommand::Seed(args) => seed::run(args)?,
        AgentCommand::Binary => binary()?,
        AgentCommand::Installer => super::print(&payload::installer())?,
        AgentCommand::Unit => super::print(&payload::unit())?,
    }
    Ok(exit::OK)
}

fn binary() -> Result<(), RumError> {
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        return Err(RumError::usage("a program is not written to a terminal")
            .hint("send it to a file: `rum agent binary > rum-agent`"));
    }
    out.write_all(payload::agent())
        .and_then(|()| out.flush())
        .map_err(|error| RumError::new("cannot write to stdout").caused_by(error))
}

fn install(args: &InstallArgs) -> Result<(), RumError> {
    let found = args.domain.as_ref().map(|domain| in_domain(domain, args));
    let named = found.transpose()?.or_else(|| args.ssh.clone());
    let steps = steps(named.as_deref().unwrap_or(SOME_VM));
    let Some(destination) = named.filter(|_| !args.print) else {
        return super::print(&instructions(&steps));
    };
    for step in &steps {
        super::print(&format!("{}\n", step.shown()))?;
        step.run()?;
    }
    super::print(&format!(
        "Installed and started rum-agent {VERSION} on {destination}\n"
    ))
}

/// The ssh destination of a libvirt domain, with or without a user.
fn in_domain(name: &str, args: &InstallArgs) -> Result<String, RumError> {
    let (user, domain) = name.split_once('@').unwrap_or(("root", name));
    let spec = libvirt::Spec {
        domain: domain.to_owned(),
        uri: args.uri.clone(),
        socket: None,
    };
    let runtime = crate::runtime::small()?;
    if !args.print {
        let given = runtime.block_on(libvirt::give_vsock(&spec))?;
        if let Some(line) = in_words(&given, &clean(domain, MAX_DOMAIN)) {
            super::print(&format!("{line}\n"))?;
        }
    }
    let address = runtime.block_on(libvirt::address(&spec))?;
    Ok(format!("{user}@{address}"))
}

/// Reports the result of adding a vsock device to `domain`, if there is one.
fn in_words(given: &Given, domain: &str) -> Option<String> {
    match given {
        Given::Nothing => None,
        Given::Now => Some(format!("Gave the domain `{domain}` a vsock device")),
        Given::AtNextStart(why) => Some(format!(
            "Gave the domain `{domain}` a vsock device, which it has when it is started next ({why})"
        )),
    }
}

/// One command.
struct Step {
    destination: String,
    /// Its standard input: the arguments of `rum` that print it, and the text.
    input: Option<(&'static str, Vec<u8>)>,
    /// The command for the VM; contains no single quotes.
    script: String,
}

fn steps(destination: &str) -> [Step; 3] {
    let step = |input, script| Step {
        destination: destination.to_owned(),
        input,
        script,
    };
    [
        step(
            Some(("agent binary", payload::agent().to_vec())),
            format!("cat >{AGENT}"),
        ),
        step(
            Some(("agent installer", payload::installer().into_bytes())),
            format!("cat >{INSTALLER}"),
        ),
        // Without sudo and doas the login user should be root.
        step(
            None,
            format!(
                "$(command -v sudo || command -v doas || echo env) sh {INSTALLER} && \
                 rm {AGENT} {INSTALLER}"
            ),
        ),
    ]
}

/// The steps as text for the user.
fn instructions(steps: &[Step]) -> String {
    let shown: String = steps.iter().map(|step| step.shown() + "\n").collect();
    format!(
        "# On this machine, for a VM with ssh ({arch}):\n\
         {shown}\n\
         # Or copy the two files into the VM in any other way and run there, as root:\n\
         sh {INSTALLER}\n\n\
         # Then, in rum.toml (a domain of libvirt: kind = \"libvirt\" and its name):\n\
         [guest]\n\
         kind = \"vsock\"\n\
         cid = 3   # the VM's\n",
        arch = std::env::consts::ARCH
    )
}

impl Step {
    /// The command as a user would type it.
    fn shown(&self) -> String {
        let from = match &self.input {
            Some((words, _)) => format!("rum {words} | "),
            None => String::new(),
        };
        let options = self.options().concat();
        let Self {
            destination,
            script,
            ..
        } = self;
        format!("{from}ssh {options}{destination} '{script}'")
    }

    /// A step without input may ask for a password, and gets the terminal.
    fn options(&self) -> &'static [&'static str] {
        match self.input {
            None => &["-t "],
            Some(_) => &[],
        }
    }

    fn run(&self) -> Result<(), RumError> {
        let failed = || RumError::new(format!("`{}` failed", self.shown()));
        let mut ssh = Command::new("ssh");
        ssh.args(self.options().iter().map(|option| option.trim()))
            .args(["--", &self.destination, &self.script]);
        if self.input.is_some() {
            ssh.stdin(Stdio::piped());
        }
        let mut child = ssh.spawn().map_err(|error| {
            failed()
                .caused_by(error)
                .hint("install ssh, or take the steps by hand: `rum agent install`")
        })?;
        let sent = self.feed(&mut child);
        let status = child.wait().map_err(|error| failed().caused_by(error))?;
        match (status.success(), sent) {
            (true, Ok(())) => Ok(()),
            (true, Err(error)) => Err(failed().caused_by(error)),
            (false, _) => Err(failed()
                .caused_by(format!("ssh: {status}"))
                .hint("what it said is above; take the steps by hand: `rum agent install`")),
        }
    }

    /// Sends the input and closes it.
    fn feed(&self, child: &mut Child) -> io::Result<()> {
        match (child.stdin.take(), &self.input) {
            (Some(mut stdin), Some((_, input))) => stdin.write_all(input),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_are_complete() {
        insta::assert_snapshot!("install", instructions(&steps(SOME_VM)));
    }

    #[test]
    fn scripts_survive_their_quotes() {
        for step in steps("vm") {
            assert!(!step.script.contains('\''), "{}", step.script);
        }
    }
}
