//! Packet tables: an instance's own pinned programs, run over single packets with the tables that
//! `portfwd attach` has filled (`BPF_PROG_TEST_RUN`). No packet goes anywhere: the verdict and the
//! bytes are what a program made of it.

use std::os::fd::OwnedFd;

use crate::kernel::{self, Runner, TestRun, index_of};
use crate::layers::difference;
use crate::topology::Topology;

/// What a program decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next program and the stack.
    Next,
    /// Taken by a redirecting helper.
    Redirect,
    /// Dropped.
    Drop,
}

/// One of the programs that see packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// TC ingress of a device of the host.
    Device,
    /// XDP of such a device.
    EarlyDevice,
    /// TC ingress of a container's host-side link.
    Link,
    /// TC egress of a device of the host, of a packet that has come in by the containers' bridge.
    Egress,
}

impl Program {
    /// The name of its pin.
    fn pin(self) -> &'static str {
        match self {
            Self::Device => portfwd_common::programs::TC_DEVICE,
            Self::EarlyDevice => portfwd_common::programs::XDP_DEVICE,
            Self::Link => portfwd_common::programs::TC_LINK,
            Self::Egress => portfwd_common::programs::TC_EGRESS,
        }
    }

    /// What a return code means (include/uapi/linux/bpf.h, pkt_cls.h).
    fn verdict(self, code: i32) -> Verdict {
        match (self, code) {
            (Self::EarlyDevice, 2) => Verdict::Next,
            (Self::EarlyDevice, 3 | 4) => Verdict::Redirect,
            (Self::EarlyDevice, 1) => Verdict::Drop,
            (Self::Device | Self::Link | Self::Egress, -1) => Verdict::Next,
            (Self::Device | Self::Link, 7) => Verdict::Redirect,
            (Self::Device | Self::Link | Self::Egress, 2) => Verdict::Drop,
            (program, code) => panic!("{program:?} must not return {code}"),
        }
    }
}

/// The opened programs of an instance.
#[derive(Debug)]
pub struct Datapath<'a> {
    topology: &'a Topology,
    device: OwnedFd,
    early_device: OwnedFd,
    link: OwnedFd,
    egress: OwnedFd,
}

impl<'a> Datapath<'a> {
    /// Opens them; the instance has to be up.
    ///
    /// # Panics
    /// When one is not there.
    #[must_use]
    pub fn open(topology: &'a Topology) -> Self {
        let open = |program: Program| topology.pinned(program.pin());
        Self {
            topology,
            device: open(Program::Device),
            early_device: open(Program::EarlyDevice),
            link: open(Program::Link),
            egress: open(Program::Egress),
        }
    }

    /// Runs a program over a frame as if it had come in by `device` of the host.
    ///
    /// # Panics
    /// When the kernel refuses to.
    #[must_use]
    pub fn run(&self, program: Program, device: &str, frame: &[u8]) -> (Verdict, Vec<u8>) {
        self.topology
            .host
            .run(|| self.run_inside(program, device, 0, frame))
    }

    /// The same on a thread that is inside the host's namespace; TCP data goes in segments of `segment` bytes,
    /// unless that is 0.
    ///
    /// # Panics
    /// When the kernel refuses to.
    #[must_use]
    pub fn run_inside(
        &self,
        program: Program,
        device: &str,
        segment: u32,
        frame: &[u8],
    ) -> (Verdict, Vec<u8>) {
        let index = index_of(device);
        let mut context = skb_context(index);
        context[GSO_SIZE] = segment;
        let run = match program {
            Program::Device => kernel::test_run(&self.device, frame, &context),
            Program::Link => kernel::test_run(&self.link, frame, &context),
            Program::Egress => {
                context[INGRESS_IFINDEX] = index_of("br0");
                kernel::test_run(&self.egress, frame, &context)
            }
            Program::EarlyDevice => {
                kernel::test_run(&self.early_device, frame, &xdp_context(index, frame))
            }
        };
        let TestRun { verdict, packet } =
            run.unwrap_or_else(|error| panic!("{program:?} on {device}: {error}: {frame:02x?}"));
        (program.verdict(verdict), packet)
    }

    /// For many frames that come in by `device` and by the link of a container. Use it inside the host's
    /// namespace.
    #[must_use]
    pub fn burst(&self, device: &str, link: &str) -> Burst<'_> {
        Burst {
            datapath: self,
            runner: Runner::default(),
            device: skb_context(index_of(device)),
            link: skb_context(index_of(link)),
            bridge: index_of("br0"),
        }
    }

    /// What is wrong with each of the rows, in their order.
    #[must_use]
    pub fn faults(&self, rows: &[Row]) -> Vec<String> {
        let faults = || rows.iter().filter_map(|row| self.fault(row)).collect();
        self.topology.host.run(faults)
    }

    /// What is wrong with a program's verdict over a frame or with the bytes that come out; `None` if
    /// nothing is. Hardware addresses do not count: whoever delivers the packet writes them.
    ///
    /// XDP may pass up untouched what TC can do, and never redirects yet: where TC redirects, it has
    /// to pass up the same bytes.
    fn fault(&self, row: &Row) -> Option<String> {
        let (verdict, mut packet) =
            self.run_inside(row.program, row.device, row.segment, &row.input);
        if packet.len() >= 12 && row.output.len() >= 12 {
            packet[..12].copy_from_slice(&row.output[..12]);
        }
        let early = row.program == Program::EarlyDevice;
        let untouched = verdict == Verdict::Next && difference(&row.input, &packet).is_empty();
        if untouched && early {
            return None;
        }
        if early && row.verdict == Verdict::Redirect && verdict == Verdict::Next {
            return describe(row, verdict, Verdict::Next, &packet);
        }
        describe(row, verdict, row.verdict, &packet)
    }
}

/// Many frames, one after the other.
#[derive(Debug)]
pub struct Burst<'a> {
    datapath: &'a Datapath<'a>,
    runner: Runner,
    device: [u32; 48],
    link: [u32; 48],
    bridge: u32,
}

impl Burst<'_> {
    /// Runs the TC program of the device or of the link over a frame, which it has to take.
    ///
    /// # Panics
    /// When the kernel refuses to, or the frame is not translated.
    pub fn run(&mut self, program: Program, frame: &[u8]) {
        let (verdict, _) = self.send(program, frame);
        assert_eq!(verdict, Verdict::Redirect, "{frame:02x?}");
    }

    /// What the TC program of the device or of the link makes of a frame.
    ///
    /// # Panics
    /// When the kernel refuses to.
    pub fn send(&mut self, program: Program, frame: &[u8]) -> (Verdict, &[u8]) {
        let (descriptor, context) = match program {
            Program::Link => (&self.datapath.link, &self.link),
            _ => (&self.datapath.device, &self.device),
        };
        let run = self.runner.run(descriptor, frame, context);
        let (code, bytes) = run.unwrap_or_else(|error| panic!("{program:?}: {error}"));
        (program.verdict(code), bytes)
    }
}

impl Burst<'_> {
    /// What a frame that leaves by the device, and has come in by the containers' bridge, goes on as.
    ///
    /// # Panics
    /// When the kernel refuses to, or the frame does not go on.
    pub fn leave(&mut self, frame: &[u8]) -> &[u8] {
        let mut context = self.device;
        context[INGRESS_IFINDEX] = self.bridge;
        let run = self.runner.run(&self.datapath.egress, frame, &context);
        let (code, bytes) = run.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(Program::Egress.verdict(code), Verdict::Next, "{frame:02x?}");
        bytes
    }
}

fn describe(row: &Row, verdict: Verdict, expected: Verdict, packet: &[u8]) -> Option<String> {
    let bytes = if expected == Verdict::Drop {
        String::new()
    } else {
        difference(&row.output, packet)
    };
    (verdict != expected || !bytes.is_empty()).then(|| {
        format!(
            "{} ({:?}): expected {expected:?}, found {verdict:?}\n{bytes}",
            row.name, row.program
        )
    })
}

/// One line of a packet table.
#[derive(Debug, Clone)]
pub struct Row {
    /// A description.
    pub name: String,
    /// Which program sees the packet.
    pub program: Program,
    /// By which device of the host it comes in.
    pub device: &'static str,
    /// Bytes of payload of each packet that it is going to be cut into; 0 if it stays whole.
    pub segment: u32,
    /// The frame.
    pub input: Vec<u8>,
    /// What must become of it.
    pub verdict: Verdict,
    /// The frame afterwards.
    pub output: Vec<u8>,
}

impl Row {
    /// A frame that has to go on as it is.
    #[must_use]
    pub fn untouched(name: &str, program: Program, device: &'static str, input: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            program,
            device,
            segment: 0,
            output: input.clone(),
            input,
            verdict: Verdict::Next,
        }
    }

    /// A frame that has to be translated and redirected.
    #[must_use]
    pub fn translated(
        name: &str,
        program: Program,
        device: &'static str,
        input: Vec<u8>,
        output: Vec<u8>,
    ) -> Self {
        Self {
            verdict: Verdict::Redirect,
            output,
            ..Self::untouched(name, program, device, input)
        }
    }

    /// A frame that has to be dropped.
    #[must_use]
    pub fn dropped(name: &str, program: Program, device: &'static str, input: Vec<u8>) -> Self {
        Self {
            verdict: Verdict::Drop,
            ..Self::untouched(name, program, device, input)
        }
    }
}

/// Places in `struct __sk_buff`: the device by which the packet came in, and the size of segments.
const INGRESS_IFINDEX: usize = 9;
const GSO_SIZE: usize = 44;

/// `struct __sk_buff` with the index of the device.
fn skb_context(index: u32) -> [u32; 48] {
    const IFINDEX: usize = 10;
    let mut context = [0; 48];
    context[IFINDEX] = index;
    context
}

/// `struct xdp_md`: the packet's length, and the index of the device.
fn xdp_context(index: u32, frame: &[u8]) -> [u32; 6] {
    let length = u32::try_from(frame.len()).expect("a frame is short");
    [0, length, 0, index, 0, 0]
}
