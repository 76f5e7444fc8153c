//! What can happen, and how it is drawn.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::model::{FIRST, LAST};

/// Most faults and changes between two quiet moments.
const EPISODE: usize = 9;
/// Quiet moments between two times at home.
const HOME: usize = 12;

/// Where something listens in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// 127.0.0.1.
    Loopback,
    /// 127.0.0.2.
    Other,
    /// 0.0.0.0.
    Any,
    /// ::1.
    Six,
    /// ::, with IPv4.
    AnySix,
}

impl Place {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Loopback, "v4"),
        (Self::Other, "other"),
        (Self::Any, "any"),
        (Self::Six, "v6"),
        (Self::AnySix, "any6"),
    ];

    /// With a port.
    pub fn with(self, port: u16) -> SocketAddr {
        let ip: IpAddr = match self {
            Self::Loopback => Ipv4Addr::LOCALHOST.into(),
            Self::Other => Ipv4Addr::new(127, 0, 0, 2).into(),
            Self::Any => Ipv4Addr::UNSPECIFIED.into(),
            Self::Six => Ipv6Addr::LOCALHOST.into(),
            Self::AnySix => Ipv6Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(ip, port)
    }
}

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// One more listener in the guest, with SO_REUSEPORT.
    Open(u16, Place),
    /// The same, held by a child process.
    Fork(u16, Place),
    /// The newest listener of that place closes, or of the next one that has any.
    Close(u16, Place),
    /// A connection to this forward, or to the next one, is opened at the end of the next quiet
    /// moment, and must live.
    Hold(u16),
    /// The oldest connection that is held ends cleanly.
    Release,
    /// The program behind this forward, or the next one, accepts nobody until the next quiet moment,
    /// in which it must serve so many clients that come now and wait.
    Deaf(u16, u16),
    /// So many connections at once, of which nobody cares what becomes.
    Rush(u16, u16),
    /// Somebody else on the host takes the port.
    Take(u16),
    /// And frees it.
    Free(u16),
    /// Another configuration is saved.
    Config(u8),
    /// The agent is killed; it begins anew, with these hints where the test starts it.
    KillAgent(Hint),
    /// The agent is stopped (SIGSTOP) until the next quiet moment.
    StopAgent,
    /// The host side is stopped until the next quiet moment.
    StopHost,
    /// The host side is killed and begins anew; where it brings the agent, with these hints.
    KillHost(Hint),
    /// The device closes every connection.
    Cut,
    /// The device passes nothing on until the next quiet moment.
    Stall,
    /// The device passes a trickle on until the next quiet moment.
    Slow,
    /// The guest reboots, of which the device says nothing.
    Reboot,
    /// Listeners come and go, so many times 64: more than the agent's buffers hold.
    Storm(u16, u16),
    /// The host side has so many descriptors left, until the next quiet moment.
    Exhaust(u16),
    /// So many milliseconds pass.
    Wait(u16),
    /// All faults are lifted; the model must come true.
    Quiet,
    /// As quiet; then everything closes, and nothing may be left over.
    Home,
}

/// What wakes the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hint {
    /// Kernel events.
    Tracepoint,
    /// Notifications of system calls: what an ordinary user has. Counters where there are none.
    Seccomp,
    /// Counters.
    Poll,
    /// Nothing but the host's poll.
    None,
}

impl Hint {
    const ALL: [Self; 4] = [Self::Tracepoint, Self::Seccomp, Self::Poll, Self::None];

    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tracepoint => "tracepoint",
            Self::Seccomp => "seccomp",
            Self::Poll => "poll",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |wanted: &Place| {
            let found = Place::ALL.iter().find(|(place, _)| place == wanted);
            found.map_or("", |(_, word)| word)
        };
        match self {
            Self::Open(port, at) => write!(f, "open:{port}:{}", place(at)),
            Self::Fork(port, at) => write!(f, "fork:{port}:{}", place(at)),
            Self::Close(port, at) => write!(f, "close:{port}:{}", place(at)),
            Self::Hold(port) => write!(f, "hold:{port}"),
            Self::Release => f.write_str("release"),
            Self::Deaf(port, count) => write!(f, "deaf:{port}:{count}"),
            Self::Rush(port, count) => write!(f, "rush:{port}:{count}"),
            Self::Take(port) => write!(f, "take:{port}"),
            Self::Free(port) => write!(f, "free:{port}"),
            Self::Config(number) => write!(f, "config:{number}"),
            Self::KillAgent(hint) => write!(f, "kill-agent:{}", hint.word()),
            Self::StopAgent => f.write_str("stop-agent"),
            Self::StopHost => f.write_str("stop-host"),
            Self::KillHost(hint) => write!(f, "kill-host:{}", hint.word()),
            Self::Cut => f.write_str("cut"),
            Self::Stall => f.write_str("stall"),
            Self::Slow => f.write_str("slow"),
            Self::Reboot => f.write_str("reboot"),
            Self::Storm(port, times) => write!(f, "storm:{port}:{times}"),
            Self::Exhaust(left) => write!(f, "exhaust:{left}"),
            Self::Wait(ms) => write!(f, "wait:{ms}"),
            Self::Quiet => f.write_str("quiet"),
            Self::Home => f.write_str("home"),
        }
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split(':').collect();
        let wrong = || format!("what is `{text}`?");
        let number = |word: &str| word.parse::<u16>().map_err(|_| wrong());
        let place = |word: &str| {
            let found = Place::ALL.iter().find(|(_, name)| *name == word);
            found.map(|(place, _)| *place).ok_or_else(wrong)
        };
        let hint = |word: &str| {
            let found = Hint::ALL.into_iter().find(|hint| hint.word() == word);
            found.ok_or_else(wrong)
        };
        Ok(match words[..] {
            ["open", port, at] => Self::Open(number(port)?, place(at)?),
            ["fork", port, at] => Self::Fork(number(port)?, place(at)?),
            ["close", port, at] => Self::Close(number(port)?, place(at)?),
            ["hold", port] => Self::Hold(number(port)?),
            ["release"] => Self::Release,
            ["deaf", port, count] => Self::Deaf(number(port)?, number(count)?),
            ["rush", port, count] => Self::Rush(number(port)?, number(count)?),
            ["take", port] => Self::Take(number(port)?),
            ["free", port] => Self::Free(number(port)?),
            ["config", which] => Self::Config(which.parse().map_err(|_| wrong())?),
            ["kill-agent", word] => Self::KillAgent(hint(word)?),
            ["kill-host", word] => Self::KillHost(hint(word)?),
            ["stop-agent"] => Self::StopAgent,
            ["stop-host"] => Self::StopHost,
            ["cut"] => Self::Cut,
            ["stall"] => Self::Stall,
            ["slow"] => Self::Slow,
            ["reboot"] => Self::Reboot,
            ["storm", port, times] => Self::Storm(number(port)?, number(times)?),
            ["exhaust", left] => Self::Exhaust(number(left)?),
            ["wait", ms] => Self::Wait(number(ms)?),
            ["quiet"] => Self::Quiet,
            ["home"] => Self::Home,
            _ => return Err(wrong()),
        })
    }
}

/// The steps of a seed, without an end.
#[derive(Debug)]
pub struct Steps {
    random: fastrand::Rng,
    /// Drawn already.
    next: Vec<Step>,
    /// Steps until it is quiet.
    left: usize,
    quiet: usize,
    /// Whether the host side may be killed.
    mortal: bool,
}

impl Steps {
    /// Those of `seed`. The first of them decides what wakes the agent at first.
    pub fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let hint = Hint::ALL[random.usize(..Hint::ALL.len())];
        Self {
            random,
            next: vec![Step::KillHost(hint)],
            left: 3,
            quiet: 0,
            mortal: true,
        }
    }

    /// Without [`Step::KillHost`] but for the first: for a run that shows how its memory grows.
    pub fn without_kill(self) -> Self {
        Self {
            mortal: false,
            ..self
        }
    }

    fn draw(&mut self) -> Step {
        let random = &mut self.random;
        let port = random.u16(FIRST..=LAST);
        let other = random.u16(FIRST..=LAST);
        let place = Place::ALL[random.usize(..Place::ALL.len())].0;
        let to = Place::ALL[random.usize(..Place::ALL.len())].0;
        let hint = Hint::ALL[random.usize(..Hint::ALL.len())];
        match random.u32(..206) {
            0..46 => Step::Open(port, place),
            46..54 => Step::Fork(port, place),
            54..92 => Step::Close(port, place),
            92..102 => {
                // To another address, at once.
                self.next.push(Step::Open(port, to));
                Step::Close(port, place)
            }
            102..114 => Step::Hold(port),
            114..120 => Step::Release,
            120..126 => Step::Rush(port, random.u16(1..40)),
            126..133 => Step::Take(port),
            133..140 => Step::Free(port),
            140..147 => Step::Config(random.u8(..4)),
            147..155 => Step::KillAgent(hint),
            155..160 => Step::StopAgent,
            160..165 => Step::StopHost,
            165..167 if self.mortal => Step::KillHost(hint),
            165..170 => Step::Cut,
            170..175 => Step::Stall,
            175..178 => Step::Slow,
            178..181 => Step::Reboot,
            181..185 => {
                // What happens while the agent does not look is lost, and must be found.
                let times = random.u16(10..40);
                self.next.push(Step::Open(other, to));
                self.next.push(Step::Close(port, place));
                self.next.push(Step::Storm(other, times));
                Step::StopAgent
            }
            185..189 => {
                self.next.push(Step::Rush(port, 30));
                Step::Exhaust(random.u16(..6))
            }
            189..199 => Step::Wait(random.u16(1..300)),
            // Longer than the heartbeat's deadline.
            199 => Step::Wait(4500),
            _ => Step::Deaf(port, random.u16(2..9)),
        }
    }
}

impl Iterator for Steps {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if let Some(step) = self.next.pop() {
            return Some(step);
        }
        if self.left > 0 {
            self.left -= 1;
            return Some(self.draw());
        }
        self.left = self.random.usize(1..=EPISODE);
        self.quiet += 1;
        Some(match self.quiet % HOME {
            0 => Step::Home,
            _ => Step::Quiet,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_read_as_they_are_written_and_come_from_the_seed() {
        let steps: Vec<Step> = Steps::new(7).take(5000).collect();
        for step in &steps {
            assert_eq!(step.to_string().parse(), Ok(*step));
        }
        let kills = |steps: &[Step]| {
            steps
                .iter()
                .filter(|s| matches!(s, Step::KillHost(_)))
                .count()
        };
        assert!(kills(&steps) > 1 && steps.contains(&Step::Home));
        assert!(steps.iter().copied().eq(Steps::new(7).take(5000)));
        assert!(!steps.iter().copied().eq(Steps::new(8).take(5000)));
        let mortal: Vec<Step> = Steps::new(7).without_kill().take(5000).collect();
        assert_eq!(kills(&mortal), 1);
    }
}
