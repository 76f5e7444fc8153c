#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rum_tests::fuzz::proc_net(data));
