//! The caller's terminal in a guest: a shell has job control and /dev/tty on it, with `private_pts`, too. Its
//! name is there only without.

use std::fs;

use rum_tests::netns::in_netns;
use rum_tests::rum::binary;
use rum_tests::terminal::Terminal;
use rum_tests::wait::until;

use crate::support::{House, Who};

/// What is typed never contains what is waited for.
fn a_shell_on_it(who: Who, private_pts: bool) {
    let house = House::new(who);
    let file = house.setup.path().join("rum.toml");
    let text = format!(
        "name = \"a\"\n[guest]\nprivate_pts = {private_pts}\n[auto_ports]\nrange = \"5000\"\n"
    );
    fs::write(&file, text).unwrap();
    let terminal = Terminal::new(100, 40);
    let mut command = house.setup.command(binary("rum"));
    command.args(["-q", "up", "-c"]).arg(&file).arg("--");
    command.args(["bash", "--norc", "--noprofile", "-i"]);
    let mut shell = terminal.spawn(&mut command);

    terminal.keys("tty; echo named$((1+1))\n");
    let screen = terminal.wait("named2");
    assert_eq!(screen.contains("not a tty"), private_pts, "{screen}");
    assert_eq!(screen.contains("\n/dev/pts/"), !private_pts, "{screen}");
    terminal.keys("echo opened$((40+2)) >/dev/tty\n");
    terminal.wait("opened42");

    terminal.keys("sh -c 'echo runs$((3+4)); exec sleep 1000'\n");
    terminal.wait("runs7");
    terminal.keys("\u{1a}");
    terminal.wait("Stopped");
    terminal.keys("bg; kill %1; wait; echo again$((5+6))\n");
    terminal.wait("again11");
    // script(1) opens a terminal of the guest.
    terminal.keys("script -qec 'echo inner$((7+8))' /dev/null; echo outer$((8+9))\n");
    terminal.wait("inner15");
    terminal.wait("outer17");
    terminal.keys("exit 7\n");
    let status = until("the end", || shell.try_wait().unwrap());
    assert_eq!(status.code(), Some(7));
}

#[test]
fn a_shell_has_its_terminal() {
    in_netns(|| {
        a_shell_on_it(Who::Root, false);
        a_shell_on_it(Who::User, false);
    });
}

/// Root needs no ids for it.
#[test]
fn a_shell_has_its_terminal_beside_those_of_the_guest() {
    in_netns(|| a_shell_on_it(Who::Root, true));
}
