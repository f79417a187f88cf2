//! The program as its users run it: arguments in, exit code, stdout and stderr out.

#[path = "../support/certificates.rs"]
mod certificates;
mod offline;
mod support;
mod walk;
