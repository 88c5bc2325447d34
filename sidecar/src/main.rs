//! The `warpdrive` binary.
fn main() {}
