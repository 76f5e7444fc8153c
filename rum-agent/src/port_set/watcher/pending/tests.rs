use proptest::prelude::*;

use super::super::recheck::PAUSES;
use super::*;
use crate::hint::Began;
use crate::schedule::{BURST, MIN_DISTANCE};

const MS: Duration = Duration::from_millis(1);
/// Listeners among which one port is looked up alone.
const MANY: usize = LOOKUP_COST;

/// Something began to listen, ended, or listens elsewhere.
fn began(port: u16) -> Wake {
    let (pid, at_ns) = (1, 1);
    Wake {
        listening: vec![Began { port, pid, at_ns }],
        ..Wake::default()
    }
}

fn ended(port: u16) -> Wake {
    Wake {
        ended: vec![port],
        ..Wake::default()
    }
}

fn foreign(port: u16) -> Wake {
    Wake {
        foreign: vec![port],
        ..Wake::default()
    }
}

fn anywhere() -> Wake {
    Wake {
        anywhere: true,
        ..Wake::default()
    }
}

fn ports<const N: usize>(ports: [u16; N]) -> Scope {
    Scope::Ports(ports.into())
}

/// A machine, its clock and what the kernel would show.
struct Bench {
    pending: Pending<&'static str>,
    now: Instant,
}

impl Bench {
    /// After the first dump.
    fn new() -> Self {
        let now = Instant::now();
        let mut bench = Self {
            pending: Pending::new(now),
            now,
        };
        let first = bench.begin(0);
        assert_eq!((&first.scope, first.purpose), (&Scope::All, Purpose::Fold));
        bench.pending.folded(&first, |_| false);
        bench.idle();
        bench
    }

    fn hint(&mut self, wake: Wake) {
        self.pending.absorb(&wake, self.now);
    }

    fn next(&mut self) -> Next {
        self.pending.next(self.now)
    }

    /// How long it waits; `None` for ever.
    fn wait(&mut self) -> Option<Duration> {
        match self.next() {
            Next::Wait(until) => until.map(|until| until - self.now),
            Next::Dump => panic!("it does not wait"),
        }
    }

    fn idle(&mut self) {
        assert_eq!(self.wait(), None);
    }

    fn begin(&mut self, known: usize) -> Dump<&'static str> {
        assert_eq!(self.next(), Next::Dump);
        self.pending.begin(self.now, known)
    }

    /// A dump of this scope begins, becomes the set and shows `shown`.
    fn folds(&mut self, scope: &Scope, shown: &[u16]) {
        let dump = self.begin(MANY);
        assert_eq!((&dump.scope, dump.purpose), (scope, Purpose::Fold));
        self.pending.folded(&dump, |port| shown.contains(&port));
    }

    /// A dump begins that only answers, and finds this.
    fn answers(&mut self, difference: Difference) {
        self.pending.ask("host");
        let dump = self.begin(MANY);
        assert_eq!((&dump.scope, dump.purpose), (&Scope::All, Purpose::Answer));
        assert_eq!(dump.requests, ["host"]);
        self.pending.answered(difference, self.now);
    }
}

#[test]
fn a_hint_is_looked_at_at_once_and_once_if_the_dump_shows_it() {
    let mut bench = Bench::new();
    bench.hint(began(80));
    bench.folds(&ports([80]), &[80]);
    bench.idle();
    bench.hint(ended(80));
    bench.folds(&ports([80]), &[]);
    bench.idle();
}

#[test]
fn all_hints_and_requests_share_a_dump() {
    let mut bench = Bench::new();
    bench.hint(began(80));
    bench.hint(ended(81));
    let two = bench.begin(2 * MANY);
    assert_eq!(two.scope, ports([80, 81]));
    bench.pending.folded(&two, |_| true);
    bench.hint(ended(80));
    bench.pending.ask("a");
    bench.pending.ask("b");
    let dump = bench.begin(2 * MANY);
    assert_eq!((&dump.scope, dump.purpose), (&Scope::All, Purpose::Fold));
    assert_eq!(dump.requests, ["a", "b"]);
    bench.pending.folded(&dump, |_| true);
    bench.idle();
}

#[test]
fn a_port_is_looked_up_alone_where_that_is_cheaper() {
    for (known, scope) in [(2 * MANY - 1, Scope::All), (2 * MANY, ports([80, 81]))] {
        let mut bench = Bench::new();
        bench.hint(began(80));
        bench.hint(began(81));
        assert_eq!(bench.begin(known).scope, scope);
    }
}

#[test]
fn a_hint_without_a_port_is_about_all() {
    let hints: [fn(&mut Bench); 3] = [
        |bench| bench.hint(anywhere()),
        |bench| bench.hint(ended(0)),
        |bench| bench.pending.absorb(&foreign(0), bench.now - FOREIGN_AFTER),
    ];
    for hint in hints {
        let mut bench = Bench::new();
        hint(&mut bench);
        bench.hint(ended(80));
        bench.folds(&Scope::All, &[]);
        bench.idle();
    }
}

#[test]
fn a_hinted_port_that_no_dump_shows_is_looked_at_again_and_given_up() {
    let mut bench = Bench::new();
    bench.hint(began(80));
    bench.folds(&ports([80]), &[]);
    for pause in PAUSES {
        if pause > Duration::ZERO {
            assert_eq!(bench.wait(), Some(pause));
        }
        bench.now += pause;
        bench.folds(&ports([80]), &[]);
    }
    bench.idle();
}

#[test]
fn a_new_range_is_looked_at_as_if_something_began_there() {
    let mut bench = Bench::new();
    bench.pending.expect(0);
    for pause in [&[Duration::ZERO], &PAUSES[..]].concat() {
        assert!(bench.pending.expects_unknown() || pause.is_zero());
        bench.now += pause;
        bench.folds(&Scope::All, &[80]);
    }
    assert!(!bench.pending.expects_unknown());
    bench.idle();
}

#[test]
fn a_foreign_hint_is_looked_at_a_little_later_and_once() {
    let mut bench = Bench::new();
    bench.hint(foreign(80));
    assert_eq!(bench.wait(), Some(FOREIGN_AFTER));
    bench.now += MS;
    bench.hint(foreign(81));
    // The second does not put off the first.
    assert_eq!(bench.wait(), Some(FOREIGN_AFTER - MS));
    bench.now += FOREIGN_AFTER - MS;
    let dump = bench.begin(2 * MANY);
    assert_eq!(dump.scope, ports([80, 81]));
    bench.pending.folded(&dump, |_| false);
    bench.idle();
}

#[test]
fn a_dump_of_all_leaves_nothing_for_later_and_one_of_a_port_does() {
    let mut bench = Bench::new();
    bench.hint(foreign(80));
    bench.hint(ended(81));
    bench.folds(&ports([81]), &[]);
    assert_eq!(bench.wait(), Some(FOREIGN_AFTER));
    bench.hint(anywhere());
    bench.folds(&Scope::All, &[]);
    bench.idle();
}

#[test]
fn what_an_answer_finds_is_repaired_later_and_sooner_once_confirmed() {
    let mut bench = Bench::new();
    bench.answers(Difference::None);
    bench.idle();
    bench.answers(Difference::Ports);
    assert_eq!(bench.wait(), Some(REPAIR_AFTER));
    // Another host asks at the same time.
    bench.now += CONFIRMED_AFTER - MS;
    bench.answers(Difference::Ports);
    assert_eq!(bench.wait(), Some(REPAIR_AFTER - CONFIRMED_AFTER + MS));
    bench.now += MS;
    bench.answers(Difference::Ports);
    assert_eq!(bench.wait(), Some(REPAIR_CONFIRMED_AFTER));
    bench.now += REPAIR_CONFIRMED_AFTER;
    bench.folds(&Scope::All, &[]);
    bench.idle();
    // The next difference is another one.
    bench.answers(Difference::Ports);
    assert_eq!(bench.wait(), Some(REPAIR_AFTER));
    bench.answers(Difference::Addresses);
    bench.folds(&Scope::All, &[]);
    bench.idle();
}

#[test]
fn a_dump_that_fails_is_repeated_ever_more_rarely() {
    let mut bench = Bench::new();
    bench.hint(ended(80));
    bench.pending.ask("host");
    for (times, pause) in [10, 20, 40, 80, 160, 320, 500, 500].into_iter().enumerate() {
        let dump = bench.begin(MANY);
        assert_eq!(bench.pending.failed(dump, bench.now), times as u32 + 1);
        assert_eq!(bench.wait(), Some(MS * pause));
        bench.now += MS * pause;
    }
    // What it was for may not be known any more.
    bench.folds(&Scope::All, &[]);
    bench.idle();
}

#[test]
fn an_answer_that_fails_is_not_repeated_but_the_next_one_waits() {
    let mut bench = Bench::new();
    bench.pending.ask("a");
    let dump = bench.begin(MANY);
    assert_eq!(bench.pending.failed(dump, bench.now), 1);
    bench.idle();
    bench.pending.ask("b");
    assert_eq!(bench.wait(), Some(10 * MS));
    bench.now += 10 * MS;
    let dump = bench.begin(MANY);
    assert_eq!(dump.requests, ["b"]);
    bench.pending.answered(Difference::None, bench.now);
    // Its success counts.
    bench.pending.ask("c");
    let dump = bench.begin(MANY);
    assert_eq!(bench.pending.failed(dump, bench.now), 1);
}

#[test]
fn a_burst_passes_and_a_storm_is_spaced_whatever_it_is_of() {
    let mut bench = Bench::new();
    let storms: [fn(&mut Bench); 3] = [
        |bench| bench.hint(ended(80)),
        |bench| bench.pending.ask("host"),
        |bench| {
            bench
                .pending
                .absorb(&foreign(80), bench.now - FOREIGN_AFTER)
        },
    ];
    for storm in storms {
        bench.now += Duration::from_secs(1);
        for _ in 0..BURST {
            storm(&mut bench);
            let dump = bench.begin(MANY);
            bench.pending.spent(&dump, Duration::ZERO);
        }
        storm(&mut bench);
        assert_eq!(bench.wait(), Some(MIN_DISTANCE));
        bench.now += MIN_DISTANCE;
        let _ = bench.begin(MANY);
    }
}

#[test]
fn a_port_is_spared_while_it_is_looked_for_and_not_by_an_answer() {
    let mut bench = Bench::new();
    bench.hint(began(80));
    let first = bench.begin(MANY);
    assert!(bench.pending.spares(&first, 80) && !bench.pending.spares(&first, 81));
    bench.pending.folded(&first, |_| false);
    let (last, before) = PAUSES.split_last().expect("some");
    for pause in before {
        bench.now += *pause;
        let dump = bench.begin(MANY);
        assert!(bench.pending.spares(&dump, 80));
        bench.pending.folded(&dump, |_| false);
    }
    bench.pending.ask("host");
    let answer = bench.begin(MANY);
    assert_eq!(answer.purpose, Purpose::Answer);
    assert!(!bench.pending.spares(&answer, 80));
    bench.now += *last;
    let dump = bench.begin(MANY);
    assert!(!bench.pending.spares(&dump, 80));
}

#[test]
fn a_late_port_hides_unless_its_end_was_hinted() {
    let mut bench = Bench::new();
    bench.hint(began(80));
    for _ in 0..2 {
        assert!(!bench.pending.hides(80));
        bench.folds(&ports([80]), &[]);
    }
    assert!(bench.pending.hides(80));
    bench.hint(ended(80));
    assert!(!bench.pending.hides(80));
}

/// What happens around the machine.
#[derive(Debug, Clone)]
enum Step {
    Began(u16),
    Ended(u16),
    Foreign(u16),
    Anywhere,
    Ask,
    /// So many microseconds pass.
    Pass(u64),
    /// The next dump fails.
    Fail,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u16..4).prop_map(Step::Began),
        (0u16..4).prop_map(Step::Ended),
        (0u16..4).prop_map(Step::Foreign),
        Just(Step::Anywhere),
        Just(Step::Ask),
        (0u64..20_000).prop_map(Step::Pass),
        Just(Step::Fail),
    ]
}

proptest! {
    /// Whatever comes in whatever order: a dump that covers it becomes the set afterwards, each request
    /// is in exactly one dump, and then nothing is left to do.
    #[test]
    fn nothing_is_lost_and_it_comes_to_rest(steps in prop::collection::vec(step(), 0..60)) {
        let mut bench = Bench::new();
        let (mut owed, mut asked, mut answered, mut fails) = (Scope::NONE, 0, 0, 0);
        let mut steps = steps.into_iter();
        loop {
            if bench.next() == Next::Dump {
                let dump = bench.pending.begin(bench.now, 3 * MANY);
                bench.pending.spent(&dump, Duration::ZERO);
                answered += dump.requests.len();
                if fails > 0 {
                    fails -= 1;
                    bench.pending.failed(dump, bench.now);
                } else if dump.purpose == Purpose::Answer {
                    bench.pending.answered(Difference::Ports, bench.now);
                    owed = Scope::All;
                } else {
                    bench.pending.folded(&dump, |port| port == 1);
                    owed = match (owed, dump.scope) {
                        (_, Scope::All) => Scope::NONE,
                        (Scope::All, _) => Scope::All,
                        (Scope::Ports(owed), Scope::Ports(shown)) => Scope::Ports(&owed - &shown),
                    };
                }
                continue;
            }
            match steps.next() {
                Some(Step::Began(port)) => { bench.hint(began(port)); owed.extend(Scope::of(port)) }
                Some(Step::Ended(port)) => { bench.hint(ended(port)); owed.extend(Scope::of(port)) }
                Some(Step::Foreign(port)) => { bench.hint(foreign(port)); owed.extend(Scope::of(port)) }
                Some(Step::Anywhere) => { bench.hint(anywhere()); owed = Scope::All }
                Some(Step::Ask) => { bench.pending.ask("host"); asked += 1 }
                Some(Step::Pass(micros)) => bench.now += Duration::from_micros(micros),
                Some(Step::Fail) => fails += 1,
                None => match bench.next() {
                    Next::Wait(Some(until)) => { prop_assert!(until > bench.now); bench.now = until }
                    _ => break,
                },
            }
        }
        prop_assert_eq!((owed, asked), (Scope::NONE, answered));
    }
}
