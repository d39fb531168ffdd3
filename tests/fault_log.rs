//! Faults on purpose are warned of in the log. One test in a process of its own: `tracing` remembers for all threads
//! whether anybody listens.
#![cfg(all(feature = "http", feature = "files"))]

use enmesh::Mesh;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PROFILE: &str = "
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: web.shop}
spec:
  routes:
  - name: slow
    condition: {pathRegex: /slow}
    fault: {delay: {fixedDelay: 200ms}}
  - name: broken
    condition: {pathRegex: /broken}
    fault: {abort: {httpStatus: 503}}
  - {name: whole, condition: {method: GET}}
";

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// How many warnings there were since this was last asked.
    fn warnings(&self) -> usize {
        let text = String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap();
        text.matches("broken on purpose").count()
    }
}

#[tokio::test]
async fn faults_are_warned_of_before_anybody_calls() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    for (on, warnings) in [(true, 2), (false, 0)] {
        let mesh = Mesh::builder().profile_yaml(PROFILE).inject_faults(on).dns(false).build().unwrap();
        assert_eq!(log.warnings(), warnings);
        drop(mesh);
    }
    let folder = std::env::temp_dir().join(format!("enmesh-fault-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("web.yaml"), PROFILE).unwrap();
    let mesh = Mesh::builder().name("bot.shop:80").profiles_dir(&folder).dns(false).build().unwrap();
    let mut warnings = 0;
    for _ in 0..1_000 {
        warnings += log.warnings();
        if warnings >= 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(warnings, 2, "as soon as the file is read");
    drop(mesh);
    let _ = std::fs::remove_dir_all(&folder);
}
