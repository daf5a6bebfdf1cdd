"""What is put into a kernel bundle: a bundle of another recipe is not used."""

from __future__ import annotations

__all__ = ["CHANNEL", "DATA", "DEVICES", "EMULATION", "RARE", "RECIPE", "ROOT"]

#: Counts changes of how things are put into a bundle.
_FORMAT = 4

#: Loaded before the guest channel opens (docs/reference/agent-protocol.md, section 7).
CHANNEL = ("virtio_pci", "virtio_console")

#: Loaded before the root is mounted. Under TCG each module costs 5 to 15 ms of boot time, so the rest waits
#: in modules.erofs.
ROOT = ("virtio_blk", "erofs", "overlay")

#: Loaded last if the kernel has it as a module; data disks of another type do without.
DATA = ("ext4",)

#: Loaded after the root is mounted, in machines that have the device.
DEVICES = ("virtio_net", "virtio_balloon", "virtio_rng", "virtio_mem", "virtiofs")

#: Likewise, in the few machines that want it: what others start from does without.
RARE = ("vmw_vsock_virtio_transport",)

#: Loaded only where programs of another architecture are to run, before the root's first one does.
EMULATION = "binfmt_misc"

#: All of this in one line.
RECIPE = f"{_FORMAT} " + ",".join((*CHANNEL, "", *ROOT, "", *DATA, "", *DEVICES, "", *RARE, "", EMULATION))
