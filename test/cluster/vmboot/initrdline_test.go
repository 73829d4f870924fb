package vmboot_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/cluster/vmboot"
)

// The kernel's stub measures an initrd that systemd-boot hands over, and not one that it reads itself
// because the command line has "initrd=". Both give the same command line. So another initrd runs,
// appends the expected digest to PCR 9, and PCRs 0 to 9 and 11 to 14 are those of the golden machine. Only
// IMA's boot_aggregate tells.
func TestThreat08_AnInitrdThatTheKernelReadsItselfIsNotProven(t *testing.T) {
	if testing.Short() {
		t.Skip("boots virtual machines in emulation, which -short leaves out")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	p := newPredictor(ctx, t)
	image := p.build(ctx, t, "entry", vmboot.Changes{Loader: vmboot.SystemdBoot})
	golden := p.boot(ctx, t, "entry", image)
	set := golden.captured(t)
	if want := fmt.Sprintf("sha256:%x", image.InitrdSHA256); !strings.Contains(string(set.Marshal()), want) {
		t.Errorf("the set of the golden machine does not pin initrd %s:\n%s", want, set.Marshal())
	}
	boot, _, _ := strings.Cut(string(set.Marshal()), "\nima:")
	without, err := reference.ParseSet([]byte(boot + "\n")) // looks at no measured files
	must(t, err)
	evil := p.boot(ctx, t, "line", p.build(ctx, t, "line", vmboot.Changes{
		Loader: vmboot.SystemdBoot,
		Files:  map[string]string{"etc/extend": fmt.Sprintf("%x", image.InitrdSHA256)},
		Entry: func(line string) string {
			return "title Keelson\nlinux /keelson/vmlinuz\noptions initrd=\\keelson\\initrd.img " + line + "\n"
		},
	}))
	for _, pcr := range []int{4, 12} {
		if !bytes.Equal(golden.base.Value(pcr), evil.base.Value(pcr)) {
			t.Errorf("PCR %d differs", pcr)
		}
	}
	if got := evil.bundle.CommandLine; got != golden.bundle.CommandLine || !strings.HasPrefix(got, `initrd=\keelson`) {
		t.Errorf("the command lines differ: %q", got)
	}
	shown, later := evil, evil
	shown.bundle.EventLog = appended(t, evil.bundle.EventLog, 9, image.InitrdSHA256[:])
	later.bundle.Userspace = fmt.Appendf(nil, "\x1e{\"pcr\":9,\"digests\":[{\"hashAlg\":\"sha256\",\"digest\":\"%x\"}]}\n", image.InitrdSHA256)
	for name, c := range map[string]struct {
		b     booted
		set   reference.Set
		check string
	}{
		"PCR 9's event is in the firmware's log":    {shown, set, "ima.aggregate"},
		"it is in systemd's log":                    {later, set, "kernel.initrd"},
		"so it is, and measured files do not count": {later, without, "kernel.initrd"},
	} {
		for _, line := range []string{golden.bundle.CommandLine, ""} {
			c.b.bundle.CommandLine = line
			if refusals := appraised(t, c.b, c.set); len(refusals) == 0 || refusals[0].Check != c.check {
				t.Errorf("%s, command line %q: %v, want %s", name, line, refusals, c.check)
			}
		}
	}
}

// appended is a crypto-agile event log with one more event, of which only the SHA-256 digest is right.
func appended(t *testing.T, log []byte, pcr uint32, digest []byte) []byte {
	t.Helper()
	le := binary.LittleEndian
	const algorithms = 32 + 24 // after the first event's head, signature, class, version and size
	if len(log) < algorithms+4 {
		t.Fatal("no log")
	}
	out := le.AppendUint32(le.AppendUint32(slices.Clone(log), pcr), 6)
	n := le.Uint32(log[algorithms:])
	out = le.AppendUint32(out, n)
	for i := range int(n) {
		alg := log[algorithms+4+4*i:]
		out = append(out, alg[:2]...)
		sum := make([]byte, le.Uint16(alg[2:]))
		if le.Uint16(alg) == 0xB {
			copy(sum, digest)
		}
		out = append(out, sum...)
	}
	return le.AppendUint32(out, 0)
}
