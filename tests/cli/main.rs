//! The program as its users run it: arguments in, exit code, stdout and stderr out.

#[path = "../support/certificates.rs"]
mod certificates;
mod imports;
mod offline;
#[path = "../support/ports.rs"]
mod ports;
mod support;
mod walk;
