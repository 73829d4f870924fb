package predict

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// target is a folder of the initrd into which systemd-stub puts files, with the modes that it gives
// (systemd src/boot/cpio.c).
type target struct {
	dir               string
	dirMode, fileMode uint32
}

// archive is a cpio archive ("newc") as systemd-stub writes it: the folder and those above it, the
// files in order of their names, a trailer; no owner, no times, inodes from 1.
func (t target) archive(files map[string][]byte) []byte {
	const folder, regular = 0o040000, 0o100000
	var b bytes.Buffer
	inode := uint32(1)
	entry := func(name string, mode uint32, content []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", inode, mode, 0, 0, 1, 0,
			len(content), 0, 0, 0, 0, len(name)+1, 0)
		inode++
		b.WriteString(name + "\x00")
		pad(&b)
		b.Write(content)
		pad(&b)
	}
	for i, c := range t.dir {
		if c == '/' {
			entry(t.dir[:i], folder|0o555, nil)
		}
	}
	entry(t.dir, folder|t.dirMode, nil)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		entry(t.dir+"/"+name, regular|t.fileMode, files[name])
	}
	// The trailer is a constant of the stub's, whose name size is in upper case.
	b.WriteString("070701" + "00000000" + "00000000" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "0000000B" + "00000000" + "TRAILER!!!\x00\x00\x00\x00")
	return b.Bytes()
}

func pad(b *bytes.Buffer) { b.Write(make([]byte, -b.Len()&3)) }

// combined is what the kernel is given of several initrds: one after the other, each filled up with
// zeros to a multiple of 4. A single one is handed on as it is.
func combined(parts [][]byte) []byte {
	parts = slices.DeleteFunc(slices.Clone(parts), func(p []byte) bool { return len(p) == 0 })
	if len(parts) == 0 {
		return nil
	}
	if len(parts) == 1 {
		return parts[0]
	}
	var b bytes.Buffer
	for _, p := range parts {
		b.Write(p)
		pad(&b)
	}
	return b.Bytes()
}
