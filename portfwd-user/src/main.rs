//! The command line of portfwd.

use std::io::Write;
use std::process::ExitCode;

use portfwd_user::{
    cli::{self, Environment, Parsed},
    commands,
    error::Error,
    object, report,
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error gone as well there is nobody left to tell, but for the exit code.
            let _untold = std::io::stderr().write_all(error.report().as_bytes());
            ExitCode::from(error.exit_code())
        }
    }
}

fn run() -> Result<(), Error> {
    match cli::parse(std::env::args_os(), &Environment::of_process())? {
        Parsed::Help(text) => print(text.as_bytes()),
        Parsed::Version => print(cli::version_text(&object::hash()).as_bytes()),
        Parsed::Run(cli) => commands::run(&cli),
    }
}

fn print(text: &[u8]) -> Result<(), Error> {
    report::to_stdout(|out| out.write_all(text))
}
