//! The API alone, for replaying recordings and trying clients: `api_server [--strict] ADDRESS [STORE]`.
//!
//! Without STORE the fake plugin answers; with it the native one, over a host that carries nothing.

use api::host::{Host, Scope};
use api::model::{Model, OpStatus, PortId};
use api::plugin::Plugin;
use api::plugins::{FakePlugin, NativePlugin};
use api::server::{ServerConfig, serve};
use api::store::Store;
use api::v1::Dialect;
use std::path::Path;
use std::sync::Arc;

struct NoHost;

impl Host for NoHost {
    fn put_in_force(&self, _model: &Model, _scope: Scope<'_>) {}

    fn op_status(&self, _model: &Model, _port: &PortId) -> OpStatus {
        OpStatus::Down
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (options, arguments): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|text| text.starts_with("--"));
    let dialect = if options.iter().any(|text| text == "--strict") { Dialect::StrictEssex } else { Dialect::Plain };
    let mut arguments = arguments.into_iter();
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let plugin: Arc<dyn Plugin> = match arguments.next() {
        Some(store) => Arc::new(NativePlugin::new(Arc::new(Store::open(Path::new(&store))?), Arc::new(NoHost))?),
        None => Arc::new(FakePlugin::new()),
    };
    let listener = std::net::TcpListener::bind(address)?;
    println!("http://{}", listener.local_addr()?);
    Ok(serve(listener, ServerConfig { dialect, ..ServerConfig::default() }, plugin, std::future::pending()).await?)
}
