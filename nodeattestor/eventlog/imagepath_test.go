package eventlog_test

import (
	"encoding/binary"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/vectors"
)

// loadEvent is a UEFI_IMAGE_LOAD_EVENT with a device path of these nodes.
func loadEvent(nodes ...[]byte) []byte {
	var path []byte
	for _, n := range nodes {
		path = append(path, n...)
	}
	path = append(path, 0x7F, 0xFF, 4, 0)
	out := make([]byte, 24)
	out = binary.LittleEndian.AppendUint64(out, uint64(len(path)))
	return append(out, path...)
}

func node(kind, sub byte, data []byte) []byte {
	return append(binary.LittleEndian.AppendUint16([]byte{kind, sub}, uint16(4+len(data))), data...)
}

// fromDisk is an image's event with a path in a file system, fromFlash one of the firmware's own.
func fromDisk(path string) []byte {
	var name []byte
	for _, u := range append(utf16.Encode([]rune(path)), 0) {
		name = binary.LittleEndian.AppendUint16(name, u)
	}
	return loadEvent(node(1, 1, []byte{0, 31}), node(4, 1, make([]byte, 38)), node(4, 4, name))
}

func fromFlash() []byte {
	return loadEvent(node(4, 7, make([]byte, 16)), node(4, 6, make([]byte, 16)))
}

// image is a machine that started these images, each with its path, where the kernel's stub measured.
type image struct {
	content string
	event   []byte
}

func startedFrom(images ...image) *vectors.Log {
	l := vectors.NewLog(nodeclaim.SHA256).Measure(0, 8, []byte("version"))
	for pcr := range 8 {
		l.Measure(pcr, vectors.Separator, make([]byte, 4))
	}
	for _, i := range images {
		l.Event(4, vectors.Image, []byte(i.content), i.event)
	}
	return l
}

func stubMeasured(l *vectors.Log) *vectors.Log {
	return l.Event(9, vectors.IPL, []byte("r\x00o\x00\x00\x00"), nil).Event(9, vectors.IPL, []byte("initrd"), nil)
}

func TestALoaderThatTheLogNamesIsNoKernel(t *testing.T) {
	disk := func(content, path string) image { return image{content, fromDisk(path)} }
	shimKeys := func(l *vectors.Log) *vectors.Log { return l.Event(14, vectors.IPL, []byte("keys"), nil) }
	grubCommand := func(l *vectors.Log) *vectors.Log {
		return l.Event(8, vectors.IPL, []byte("linux /vmlinuz ro"), []byte("grub_cmd: linux /vmlinuz ro")).Event(9, vectors.IPL, []byte("file"), nil)
	}
	absolute := image{"absolute", fromFlash()}
	for name, c := range map[string]struct {
		log    *vectors.Log
		kernel string // "" for absent
		untold bool
	}{
		"systemd-boot starts a kernel":            {stubMeasured(startedFrom(disk("sd", `\EFI\systemd\systemd-bootx64.efi`), disk("K", `\vmlinuz-linux`))), "K", false},
		"a loader without a path starts a kernel": {stubMeasured(startedFrom(image{"sd", nil}, image{"K", nil})), "K", false},
		"rEFInd starts GRUB, which measures nothing": {
			stubMeasured(startedFrom(disk("refind", `\EFI\refind\refind_x64.efi`), disk("grub", `\EFI\debian\grubx64.efi`))), "", true},
		"systemd-boot starts GRUB, in capital letters": {
			stubMeasured(startedFrom(disk("sd", `\EFI\BOOT\BOOTX64.EFI`), disk("grub", `\EFI\UBUNTU\GRUBX64.EFI`))), "", true},
		"GRUB alone":     {stubMeasured(startedFrom(disk("grub", `\EFI\debian\grubx64.efi`))), "", true},
		"a kernel alone": {stubMeasured(startedFrom(disk("K", `\vmlinuz.efi`))), "", false},
		"a shim without keys of its own starts a loader from memory": {
			stubMeasured(startedFrom(disk("shim", `\EFI\centos\shimx64.efi`), image{"grub", loadEvent()})), "", false},
		"shim starts GRUB, which measures nothing": {
			stubMeasured(shimKeys(startedFrom(disk("shim", `\EFI\ubuntu\shimx64.efi`), disk("grub", `\EFI\ubuntu\grubx64.efi`)))), "", true},
		"shim starts GRUB, which starts a kernel from memory": {
			stubMeasured(shimKeys(startedFrom(disk("shim", `\EFI\ubuntu\shimx64.efi`), disk("grub", `\EFI\ubuntu\grubx64.efi`), image{"K", loadEvent()}))), "K", false},
		"the firmware's own application stands before shim and GRUB": {
			stubMeasured(shimKeys(startedFrom(absolute, disk("shim", `\EFI\ubuntu\shimx64.efi`), image{"grub", loadEvent()}))), "", false},
		"the firmware's own application, shim, and GRUB with commands": {
			grubCommand(shimKeys(startedFrom(absolute, disk("shim", `\EFI\ubuntu\shimx64.efi`), image{"grub", loadEvent()}))), "", false},
		"the firmware's own application, shim, GRUB with commands, and a kernel": {
			grubCommand(shimKeys(startedFrom(absolute, disk("shim", `\EFI\ubuntu\shimx64.efi`), image{"grub", loadEvent()}, image{"K", loadEvent()}))), "K", false},
		"the firmware's own application before systemd-boot": {
			stubMeasured(startedFrom(absolute, disk("sd", `\EFI\systemd\systemd-bootx64.efi`), disk("K", `\K\vmlinuz`))), "K", false},
		"the last image is the firmware's own": {
			stubMeasured(startedFrom(disk("a", `\a.efi`), disk("b", `\b.efi`), absolute)), "", true},
	} {
		t.Run(name, func(t *testing.T) {
			f, ok := replay(t, c.log.Raw(), c.log.Quoted(t)).Facts(nodeclaim.SHA256)
			want := eventlog.Digest("")
			if c.kernel != "" {
				want = eventlog.NewDigest(nodeclaim.SHA256, digestOf(c.kernel))
			}
			if !ok || f.Kernel != want || f.KernelUntold() != c.untold {
				t.Errorf("kernel %q, want %q; untold %t, want %t", f.Kernel, want, f.KernelUntold(), c.untold)
			}
		})
	}
}

// What no digest covers may keep the fact from being claimed, and never makes or changes it.
func TestThreat08_APathMakesNoKernel(t *testing.T) {
	build := func(first, last []byte) eventlog.Digest {
		l := stubMeasured(startedFrom(image{"grub", first}, image{"evil", last}))
		f, _ := replay(t, l.Raw(), l.Quoted(t)).Facts(nodeclaim.SHA256)
		return f.Kernel
	}
	honest := build(nil, nil)
	for name, data := range map[string][]byte{
		"a kernel's path": fromDisk(`\vmlinuz`), "a path of nothing": loadEvent(), "cut": fromDisk(`\vmlinuz`)[:40],
		"a length beyond its end":      append(fromDisk(`\vmlinuz`)[:24], 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 4, 4, 4, 0),
		"a node shorter than its head": loadEvent([]byte{4, 4, 1, 0}), "a node beyond the path": loadEvent([]byte{4, 4, 0xFF, 0xFF}),
		"a file of flash in no volume": loadEvent(node(4, 6, make([]byte, 16))), "a volume's file that has no GUID": loadEvent(node(4, 7, make([]byte, 16)), node(4, 6, nil)),
		"an odd name": loadEvent(node(4, 4, []byte{'g', 0, 'r'})), "many nodes": loadEvent(node(4, 4, nil), node(4, 4, nil), node(4, 4, []byte{'a', 0})),
	} {
		if got := build(data, data); got != honest {
			t.Errorf("%s: kernel %q, want %q", name, got, honest)
		}
	}
	if got := build(nil, fromDisk(`\grubx64.efi`)); got != "" {
		t.Errorf("a loader's path: kernel %q", got)
	}
}

// A log with paths is refused, or proves the same, whichever byte of it is changed.
func TestFlippedBytesOfPathsChangeNoFact(t *testing.T) {
	l := stubMeasured(startedFrom(image{"sd", fromDisk(`\EFI\systemd\systemd-bootx64.efi`)}, image{"K", fromDisk(`\vmlinuz`)}))
	raw, quoted := l.Raw(), l.Quoted(t)
	want := factsJSON(t, replay(t, raw, quoted))
	for i := range raw {
		for _, mask := range []byte{0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x21, 0xFF} {
			raw[i] ^= mask
			if boot, err := eventlog.Replay(raw, quoted); err == nil {
				if got := factsJSON(t, boot); got != want {
					t.Fatalf("byte %d changed by %#x changes the facts (-want +got):\n%s", i, mask, cmp.Diff(want, got))
				}
			}
			raw[i] ^= mask
		}
	}
}
