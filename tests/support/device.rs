//! The device that a test runs on, the number types that it has, and how exact they are.

use burn::tensor::{DType, Device};

/// The device that `BURN_PREFERENCE_DEVICE` names, without autodiff: gradients are asked for tensor
/// by tensor.
///
/// | name | is | wants |
/// |---|---|---|
/// | `flex` (default), `ndarray` | the CPU | nothing |
/// | `wgpu` | WGSL on whichever adapter there is: a GPU, or Mesa's lavapipe | `--features wgpu` |
/// | `cuda` | an NVIDIA GPU | `--features cuda`, `scripts/gpu/run.sh` |
/// | `tch` | LibTorch on the CPU | `--features tch`, `scripts/test_tch.sh` |
/// | `remote` | Flex behind a server of this process, over WebSocket | `--features remote-server,remote-websocket` |
pub fn device() -> Device {
    match name().as_str() {
        "flex" => Device::flex(),
        #[expect(deprecated, reason = "supported while it exists")]
        "ndarray" => Device::ndarray(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(0),
        #[cfg(feature = "tch")]
        #[expect(deprecated, reason = "supported while it exists")]
        "tch" => Device::libtorch(),
        #[cfg(all(feature = "remote-server", feature = "remote-websocket"))]
        "remote" => remote::device(),
        other => panic!("BURN_PREFERENCE_DEVICE={other}: no such device in this build"),
    }
}

/// A device that is not the test device.
pub fn elsewhere() -> Device {
    #[expect(deprecated, reason = "supported while it exists")]
    let others = [Device::ndarray(), Device::flex()];
    others.into_iter().find(|other| *other != device()).unwrap()
}

fn name() -> String {
    std::env::var("BURN_PREFERENCE_DEVICE").unwrap_or_else(|_| "flex".to_owned())
}

/// The number types of the test device, widest first.
///
/// wgpu says that it has f64, but WGSL has none, and Mesa's lavapipe no bf16.
pub fn dtypes() -> Vec<DType> {
    let all = [DType::F64, DType::F32, DType::F16, DType::BF16];
    let has = |dtype: &DType| match (name().as_str(), dtype) {
        ("wgpu", DType::F64) => false,
        (_, dtype) => device().supports_dtype(*dtype),
    };
    all.into_iter().filter(has).collect()
}

/// [`dtypes`] that arithmetic is done in; the others are upcast to f32.
pub fn wide_dtypes() -> Vec<DType> {
    let wide = |dtype: &DType| matches!(dtype, DType::F64 | DType::F32);
    dtypes().into_iter().filter(wide).collect()
}

/// Whether NaN survives: WGSL lets an implementation assume that there is none.
pub fn keeps_nan() -> bool {
    name() != "wgpu"
}

/// How far a number may be from f64 scalar code, absolute or relative, whichever is smaller.
///
/// | type | half a unit in the last place of 1 | allowed | since |
/// |---|---|---|---|
/// | f64 | 1.1e-16 | 1e-11 | log-probs of −50 cancel to ratios, exponentials of 10 multiply what is left |
/// | f32 | 6e-8 | 5e-5 | the same; GPUs round exponential and logarithm to 3 more units |
/// | f16 | 2.4e-4 | 4e-3 | inputs are exact, and f32 from the logits on: gradients are rounded once, and so are the operands, and on GPUs the sums, of their products |
/// | bf16 | 2e-3 | 8e-2 | as f16: a term of 12, which the gradients here are made of, is rounded by 3e-2; outside Flex, logits are rounded too |
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-11,
        DType::F32 => 5e-5,
        DType::F16 => 4e-3,
        DType::BF16 => 8e-2,
        other => unreachable!("{other:?} is not tested"),
    }
}

#[cfg(all(feature = "remote-server", feature = "remote-websocket"))]
pub mod remote {
    use std::io::{self, Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, LazyLock};
    use std::thread;

    use burn::remote::RemoteHost;
    use burn::server::{RemoteServer, WebSocketTransport};
    use burn::tensor::Device;

    pub fn device() -> Device {
        static DEVICE: LazyLock<Device> = LazyLock::new(server);
        DEVICE.clone()
    }

    /// Another server of this process, on a port that the system picks, and its only device.
    pub fn server() -> Device {
        device_at(serve())
    }

    fn serve() -> SocketAddr {
        let (listener, address) = listen();
        thread::spawn(move || {
            let server = RemoteServer::new([Device::flex()]);
            server.serve(WebSocketTransport::from_listener(listener))
        });
        address
    }

    fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        (listener, address)
    }

    fn device_at(address: SocketAddr) -> Device {
        let host = RemoteHost::websocket(&format!("ws://{address}"));
        Device::remote_options(&host).init().expect("a server")
    }

    /// What a server said so far.
    #[derive(Clone)]
    pub struct Answers(Arc<AtomicUsize>);

    impl Answers {
        /// Number of times that the server sent something. It only answers: a client that reads
        /// nothing hears nothing.
        pub fn count(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    /// Another server of this process, whose answers are counted on their way.
    pub fn counted_server() -> (Device, Answers) {
        let server = serve();
        let (listener, address) = listen();
        let answers = Answers(Arc::default());
        let counter = answers.0.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a connection");
                let server = TcpStream::connect(server).expect("the server listens");
                let (to_server, to_client) = (server.try_clone(), client.try_clone());
                let counter = counter.clone();
                thread::spawn(move || pass_on(client, to_server?, || ()));
                thread::spawn(move || {
                    pass_on(server, to_client?, || {
                        counter.fetch_add(1, Ordering::SeqCst);
                    })
                });
            }
        });
        (device_at(address), answers)
    }

    fn pass_on(mut from: TcpStream, mut to: TcpStream, seen: impl Fn()) -> io::Result<()> {
        let mut bytes = [0; 1 << 16];
        loop {
            let count = from.read(&mut bytes)?;
            if count == 0 {
                return Ok(());
            }
            seen();
            to.write_all(&bytes[..count])?;
        }
    }
}
