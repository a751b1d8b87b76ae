//! Debian packages of a suite, whatever suite the machine itself is of.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::process;

/// An apt that knows nothing but one suite, with lists and state of its own.
pub(crate) struct Suite {
    scratch: PathBuf,
}

impl Suite {
    /// Fetches the lists of the suite `name`; all that is its own goes into `scratch`.
    pub(crate) fn update(name: &str, scratch: &Path) -> anyhow::Result<Suite> {
        for directory in ["lists/partial", "cache/archives/partial", "packages"] {
            let directory = scratch.join(directory);
            fs::create_dir_all(&directory)
                .with_context(|| format!("create {}", directory.display()))?;
        }
        let suite = Suite {
            scratch: scratch.to_owned(),
        };
        suite.write(
            "sources.list",
            &format!(
                "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                 http://deb.debian.org/debian {name} main\n"
            ),
        )?;
        suite.write("status", "")?;
        let root = scratch.display();
        suite.write(
            "apt.conf",
            &format!(
                "Dir::Etc::SourceList \"{root}/sources.list\";\nDir::Etc::SourceParts \"-\";\n\
                 Dir::State::Lists \"{root}/lists\";\nDir::State::status \"{root}/status\";\n\
                 Dir::Cache \"{root}/cache\";\nAPT::Sandbox::User \"root\";\n\
                 Acquire::Languages \"none\";\n"
            ),
        )?;
        process::output(suite.apt("apt-get").arg("update"))?;
        Ok(suite)
    }

    /// The directory that [`Suite::apt`] runs in, where downloads go.
    pub(crate) fn packages(&self) -> PathBuf {
        self.scratch.join("packages")
    }

    /// `program`, to be run with that suite alone.
    pub(crate) fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.scratch.join("apt.conf"))
            .env("LC_ALL", "C")
            .current_dir(self.packages());
        command
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.scratch.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }
}
