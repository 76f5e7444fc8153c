//! The process that is shown for a port is the one that has it now.

use std::fs;

use rum_tests::netns::in_netns;
use rum_tests::rum::Setup;
use rum_tests::wait::until;
use serde_json::Value;

use super::support::{PYTHON, Stage, read_from};

const RANGE: &str = "[auto_ports]\nrange = \"5000-5009\"\n";

/// Gives the calling thread a short name, prctl(PR_SET_NAME).
const NAME: &str = "import ctypes, os, socket, threading, time
def name(text): ctypes.CDLL(None).prctl(15, text.encode(), 0, 0, 0)
def serve(s, text):
    while True:
        c, _ = s.accept()
        c.sendall(text)
        c.close()
";

pub fn a_listener_that_a_child_inherits_is_the_childs(setup: Setup) {
    in_netns(|| {
        let mut stage = Stage::new(setup, RANGE);
        let program = "
name('parent')
s = socket.create_server(('127.0.0.1', 5000))
r, w = os.pipe()
if os.fork():
    # Ends as soon as it is told to, by the file.
    while not os.path.exists('go'): time.sleep(0.01)
    os._exit(0)
name('heir')
serve(s, b'heir')
";
        stage.python("inherit.py", &format!("{NAME}{program}"), &[]);
        let parent = stage.until_named(5000, "parent");
        stage.write("go", "");
        let heir = stage.until_named(5000, "heir");
        assert_ne!(parent, heir);
        assert_eq!(read_from(5000), "heir");
        stage.shell(&format!("test -e /proc/{heir} && ! test -e /proc/{parent}"));
    });
}

pub fn a_listener_that_changes_hands_is_the_new_ones(setup: Setup) {
    in_netns(|| {
        let mut stage = Stage::new(setup, RANGE);
        let program = "
import array
a, b = socket.socketpair()
if os.fork():
    name('giver')
    s = socket.create_server(('127.0.0.1', 5000))
    while not os.path.exists('go'): time.sleep(0.01)
    a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [s.fileno()]))])
    s.close()
    time.sleep(1000)
name('taker')
fds = array.array('i')
_, rights, _, _ = b.recvmsg(1, socket.CMSG_LEN(4))
fds.frombytes(rights[0][2])
serve(socket.socket(fileno=fds[0]), b'taker')
";
        stage.python("hand.py", &format!("{NAME}{program}"), &[]);
        let giver = stage.until_named(5000, "giver");
        stage.write("go", "");
        stage.until_named(5000, "taker");
        assert_eq!(read_from(5000), "taker");
        // Nobody ended: no event told of it.
        stage.shell(&format!("test -e /proc/{giver}"));
    });
}

pub fn a_program_that_another_becomes_is_named(setup: Setup) {
    in_netns(|| {
        let mut stage = Stage::new(setup, RANGE);
        let program = "serve(socket.socket(fileno=3), b'activated')";
        stage.write("web.py", &format!("{NAME}{program}"));
        let listen = "systemd-socket-activate";
        stage.run(&[listen, "--listen=127.0.0.1:5000", PYTHON, "web.py"]);
        // As long as the kernel lets names be.
        let before = stage.until_named(5000, &listen[..15]);
        // It becomes the program as soon as a client comes.
        assert_eq!(read_from(5000), "activated");
        let after = stage.until(5000, "python", |port| {
            let command = port["command"].as_str().unwrap_or_default();
            command == format!("{PYTHON} web.py")
        });
        assert_eq!(after["process"]["pid"], before);
        assert_eq!(after["process"]["name"], "python3");
    });
}

pub fn an_upgraded_nginx_is_the_new_one(setup: Setup) {
    in_netns(|| {
        let mut stage = Stage::new(setup, RANGE);
        let dir = stage.setup.path().display().to_string();
        stage.write(
            "nginx.conf",
            &format!(
                "pid {dir}/nginx.pid; error_log {dir}/log; worker_processes 1; {user}
                events {{ worker_connections 64; }}
                http {{ access_log off; client_body_temp_path {dir}; proxy_temp_path {dir};
                fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};
                server {{ listen 127.0.0.1:5000; return 200 ok; }} }}",
                // Where it has a choice, its workers should be able to enter the directory.
                user = if stage.setup.uid.is_none() {
                    "user root;"
                } else {
                    ""
                },
            ),
        );
        stage.run(&[
            // By its path: that is what it executes anew.
            "/usr/sbin/nginx",
            "-c",
            &format!("{dir}/nginx.conf"),
            "-e",
            &format!("{dir}/log"),
        ]);
        let pid = |file: &str| -> u64 {
            let file = stage.setup.path().join(file);
            until("nginx's pid", || {
                fs::read_to_string(&file).ok()?.trim().parse().ok()
            })
        };
        let old = pid("nginx.pid");
        stage.until_named(5000, "nginx");
        stage.shell(&format!("kill -USR2 {old}"));
        assert_eq!(pid("nginx.pid.oldbin"), old);
        let new = until("another nginx", || {
            Some(pid("nginx.pid")).filter(|pid| *pid != old)
        });
        stage.shell(&format!("kill -QUIT {old}"));
        let oldbin = stage.setup.path().join("nginx.pid.oldbin");
        until("the end of the old one", || {
            (!oldbin.exists()).then_some(())
        });
        // Its workers are its children, which come after it.
        let shown = stage.until(5000, "the new nginx", |port| {
            port["process"]["pid"]
                .as_u64()
                .is_some_and(|pid| pid >= new)
        });
        assert_eq!(shown["process"]["name"], "nginx");
    });
}

pub fn a_thread_that_listens_is_its_process(setup: Setup) {
    in_netns(|| {
        let config = "[[auto_ports.rule]]
process = \"python*\"
guest = \"5000-5009\"
host = 15000
";
        let mut stage = Stage::new(setup, &format!("{RANGE}{config}"));
        let program = "
def f():
    name('worker-7')
    serve(socket.create_server(('127.0.0.1', 5001)), str(os.getpid()).encode())
threading.Thread(target=f).start()
";
        stage.python("threads.py", &format!("{NAME}{program}"), &[]);
        let pid = stage.until_named(5001, "python3");
        stage.until(5001, "the rule's port", |port| {
            port["host"] == "127.0.0.1:15001"
        });
        assert_eq!(read_from(15_001), pid.to_string());
    });
}

pub fn rules_know_programs_scripts_and_command_lines(setup: Setup) {
    in_netns(|| {
        let rule = |condition: &str, host: u16| {
            format!("[[auto_ports.rule]]\n{condition}\nguest = \"5000-5009\"\nhost = {host}\n")
        };
        let rules = [
            rule("process = \"node*\"", 15_000),
            rule("process = \"vite.py\"", 16_000),
            rule("command = \"* --mode=test *\"", 17_000),
            rule("process = \"python3*\"\ncommand = \"*never*\"", 18_000),
        ];
        let mut stage = Stage::new(setup, &format!("{RANGE}{}", rules.concat()));
        stage.write(
            "web.js",
            "require('net').createServer(c => c.end('node')).listen(5000, '127.0.0.1')",
        );
        stage.run(&["node", "web.js"]);
        // As Node.js 24 does.
        let program = "
import sys
name('MainThread')
serve(socket.create_server(('127.0.0.1', int(sys.argv[1]))), b'python')
";
        let program = format!("{NAME}{program}");
        stage.python("vite.py", &program, &["5001"]);
        stage.python("other.py", &program, &["5002", "--mode=test", "--fast"]);
        stage.python("third.py", &program, &["5003"]);
        for (guest, host, says) in [
            (5000, 15_000, "node"),
            (5001, 16_001, "python"),
            (5002, 17_002, "python"),
            (5003, 5003, "python"),
        ] {
            let at = format!("127.0.0.1:{host}");
            stage.until(guest, &at, |port| port["host"] == *at);
            assert_eq!(read_from(host), says);
        }
        let shown = stage.until(5002, "a command line", |port| port["command"].is_string());
        let command = format!("{PYTHON} other.py 5002 --mode=test --fast");
        assert_eq!(shown["command"], command);
        assert_eq!(shown["process"]["name"], "MainThread");
    });
}

pub fn two_programs_on_one_port_are_both_shown(setup: Setup) {
    in_netns(|| {
        let mut stage = Stage::new(setup, RANGE);
        let program = "
import sys
name(sys.argv[1])
family = socket.AF_INET6 if ':' in sys.argv[2] else socket.AF_INET
serve(socket.create_server((sys.argv[2], 5000), family=family), sys.argv[1].encode())
";
        let program = format!("{NAME}{program}");
        stage.python("six.py", &program, &["six", "::1"]);
        stage.until_named(5000, "six");
        assert_eq!(read_from(5000), "six");
        stage.python("two.py", &program, &["two", "127.0.0.2"]);
        stage.run(&[
            "socat",
            "TCP4-LISTEN:5000,bind=127.0.0.1,fork,reuseaddr",
            "SYSTEM:echo socat",
        ]);
        let others = |port: &Value| -> Vec<String> {
            let others = port["other_holders"].as_array().into_iter().flatten();
            let one = |other: &Value| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                format!(
                    "{} {}",
                    text(&other["address"]),
                    text(&other["process"]["name"])
                )
            };
            others.map(one).collect()
        };
        let shown = stage.until(5000, "three programs", |port| {
            port["process"]["name"] == "socat" && others(port) == ["127.0.0.2 two", "::1 six"]
        });
        assert_eq!(shown["state"], "forwarded");
        assert_eq!(shown["reason"]["code"], "several-programs");
        let message = shown["reason"]["message"].as_str().expect("a text");
        assert!(message.starts_with("socat (pid "), "{message}");
        assert!(message.contains(" is reached; two (pid "), "{message}");
        assert!(message.ends_with(" at 127.0.0.2 and 1 more"), "{message}");
        assert_eq!(read_from(5000), "socat\n");
    });
}
