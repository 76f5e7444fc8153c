//! Who has a port, and where it can be reached, with real programs, as root and as an ordinary user:
//! sockets that are inherited, handed over, upgraded and executed with; several programs on one
//! port; listeners that loopback does not reach; ports of containers.

mod containers;
mod reach;
mod support;
mod who;

/// Each test for root and for an ordinary user.
macro_rules! both {
    ($module:ident: $($name:ident),* $(,)?) => {
        mod $module {
            mod as_root {
                $(#[test] fn $name() { crate::$module::$name(rum_tests::rum::Setup::new()) })*
            }
            mod as_user {
                $(#[test] fn $name() { crate::$module::$name(rum_tests::rum::Setup::ordinary_user()) })*
            }
        }
    };
}

mod tests {
    both!(who:
        a_listener_that_a_child_inherits_is_the_childs,
        a_listener_that_changes_hands_is_the_new_ones,
        a_program_that_another_becomes_is_named,
        an_upgraded_nginx_is_the_new_one,
        a_thread_that_listens_is_its_process,
        rules_know_programs_scripts_and_command_lines,
        two_programs_on_one_port_are_both_shown,
    );
    both!(reach:
        what_is_bound_to_an_interface_is_served_through_it,
        an_address_that_is_not_there_is_not_forwarded_until_it_is,
    );
}
