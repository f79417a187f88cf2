//! The program: see [`concordat::cli`].

fn main() -> std::process::ExitCode {
    concordat::cli::run()
}
