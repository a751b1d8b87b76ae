//! What the documentation says about the source.

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use crate::workspace;

    /// All source files below a directory of the workspace.
    fn sources(directory: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).expect("a directory");
        entries
            .map(|entry| entry.expect("an entry").path())
            .flat_map(|path| match path.is_dir() {
                true => sources(&path),
                false => vec![path],
            })
            .collect()
    }

    #[test]
    fn every_test_that_the_tables_name_exists() {
        let places =
            ["tests/tests", "portfwd-common/src"].map(|place| workspace::root().join(place));
        let text: String = places
            .iter()
            .flat_map(|place| sources(place))
            .map(|path| fs::read_to_string(path).expect("a source file"))
            .collect();
        let mut count = 0;
        for page in ["nat-behaviour.md", "edge-cases.md"] {
            let page =
                fs::read_to_string(workspace::root().join("docs").join(page)).expect("a page");
            let rows = page.lines().filter(|line| line.starts_with('|'));
            for name in rows.flat_map(|row| row.split('`').skip(1).step_by(2)) {
                let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                if name.matches('_').count() > 3 && name.chars().all(is_word) {
                    assert!(
                        text.contains(&format!("fn {name}(")),
                        "there is no test {name}"
                    );
                    count += 1;
                }
            }
        }
        assert!(count > 200, "{count} names");
    }
}
