package vmboot

import (
	"bytes"
	_ "embed"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

//go:embed init.sh
var initScript []byte

// drivers are the modules that the guest loads: disks, network, the boot partition's file system, and containers'. TPM and IMA are built into Debian's kernel.
var drivers = []string{"virtio_pci", "virtio_blk", "virtio_net", "vfat", "nls_cp437", "nls_ascii", "overlay"}

// applets are busybox's names that init.sh uses.
var applets = []string{"sh", "mount", "insmod", "ip", "mkdir", "tar", "cat", "sleep", "rm", "sync", "echo", "cp"}

// file is an entry of an initrd.
type file struct {
	mode    uint32 // as in stat(2)
	content []byte
	device  [2]uint32 // of a device node
}

const (
	modeDir     = 0o040755
	modeProgram = 0o100755
	modeFile    = 0o100644
	modeLink    = 0o120777
	modeChar    = 0o020600
)

// initrd is what the guest needs to fetch and start its programs. The same inputs make the same bytes, so that a boot's
// measurements can be told beforehand.
func (k *Kit) initrd() ([]byte, error) {
	files := map[string]file{
		"init": {mode: modeProgram, content: initScript},
		// Before devtmpfs is mounted, the kernel opens this for init.
		"dev/console": {mode: modeChar, device: [2]uint32{5, 1}},
	}
	for _, dir := range []string{"proc", "sys", "run", "tmp", "opt/keelson"} {
		files[dir] = file{mode: modeDir}
	}
	for _, name := range applets {
		files["bin/"+name] = file{mode: modeLink, content: []byte("busybox")}
	}
	busybox, err := os.ReadFile(k.system["busybox"])
	if err != nil {
		return nil, fmt.Errorf("vmboot: initrd: %w", err)
	}
	files["bin/busybox"] = file{mode: modeProgram, content: busybox}
	order, err := k.kernel.load(drivers...)
	if err != nil {
		return nil, err
	}
	var list strings.Builder
	for _, name := range order {
		content, err := os.ReadFile(k.kernel.modules[name])
		if err != nil {
			return nil, fmt.Errorf("vmboot: initrd: %w", err)
		}
		files["lib/modules/"+name+".ko"] = file{mode: modeFile, content: content}
		list.WriteString(name + ".ko\n")
	}
	files["lib/modules/order"] = file{mode: modeFile, content: []byte(list.String())}
	return archive(files), nil
}

// archive writes a cpio archive in the format "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst),
// folders before what is in them. It is not compressed: firmware hashes megabytes faster than the kernel inflates them here.
func archive(files map[string]file) []byte {
	all := maps.Clone(files)
	for name := range files {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			all[dir] = file{mode: modeDir}
		}
	}
	var b bytes.Buffer
	for i, name := range slices.Sorted(maps.Keys(all)) {
		entry(&b, i+1, name, all[name])
	}
	entry(&b, 0, "TRAILER!!!", file{})
	return b.Bytes()
}

func entry(b *bytes.Buffer, inode int, name string, f file) {
	fmt.Fprintf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		inode, f.mode, 0, 0, 1, 0, len(f.content), 0, 0, f.device[0], f.device[1], len(name)+1, 0)
	b.WriteString(name + "\x00")
	pad(b)
	b.Write(f.content)
	pad(b)
}

func pad(b *bytes.Buffer) { b.Write(make([]byte, -b.Len()&3)) }
