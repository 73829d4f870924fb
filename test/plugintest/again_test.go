package plugintest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// imaOffsets notes where each IMA chunk that the agent sends begins.
type imaOffsets []uint64

func (o *imaOffsets) watch(t testing.TB) tamper {
	*o = nil
	return func(round int, msg []byte) []byte {
		var chunks []evidence.Chunk
		switch {
		case round == 1:
			chunks = must2(evidence.ParseResponse(msg))(t).Chunks
		case round > 1:
			chunks = append(chunks, *must2(evidence.ParseChunk(msg))(t))
		}
		for _, c := range chunks {
			if c.Log == evidence.IMALog {
				*o = append(*o, c.Offset)
			}
		}
		return msg
	}
}

// rebootable is a machine whose TPM can be stopped and started: that resets its PCRs and raises resetCount.
type rebootable struct {
	*machine
	tpmDir string
	stop   func() error
}

func newRebootable(t *testing.T, ca *tpmtest.CA) *rebootable {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("skipped: swtpm is not installed, and the simulator forgets its keys when it stops")
	}
	r := &rebootable{machine: &machine{dir: tpmtest.Dir(t)}, tpmDir: tpmtest.Dir(t)}
	r.start(t)
	t.Cleanup(func() { check(t, r.stop()) })
	check(t, tpmtest.Manufacture(t.Context(), r.tpm, ca))
	for _, e := range must2(r.dev.Endorsements(t.Context()))(t) {
		r.ekHex = append(r.ekHex, e.Hash.String())
	}
	r.boot(t)
	return r
}

func (r *rebootable) start(t testing.TB) {
	t.Helper()
	var err error
	r.tpm, r.stop, err = tpmtest.StartSocket(t.Context(), r.tpmDir)
	check(t, err)
	r.reopen(t)
}

func (r *rebootable) reopen(t testing.TB) {
	t.Helper()
	r.dev = must2(tpmdev.Open(r.tpm))(t)
}

// boot replays the recorded boot "good" and puts its logs in place.
func (r *rebootable) boot(t testing.TB) {
	t.Helper()
	for _, name := range []string{"binary_bios_measurements", "binary_runtime_measurements", "cmdline.txt"} {
		data := must2(os.ReadFile(filepath.Join("..", "vectors", "measured-boots", "good", name)))(t)
		check(t, os.WriteFile(r.file(name), data, 0o600))
	}
	check(t, tpmtest.Replay(t.Context(), r.dev, must2(tpmtest.ParseBoot(r.read(t, "binary_bios_measurements"), r.read(t, "binary_runtime_measurements")))(t)))
}

func (r *rebootable) reboot(t testing.TB) {
	t.Helper()
	check(t, r.dev.Close())
	check(t, r.stop())
	r.start(t)
	r.boot(t)
}

func TestAttestingAgainCostsWhatIsNewAndARebootTheWholeList(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newRebootable(t, ca)
	m.serve(t, "")
	newNode(t, "again-1")
	boot := uint64(len(m.read(t, "binary_runtime_measurements")))
	entry := tpmtest.IMAEntry("/usr/bin/tool", []byte("tool"))
	m.measure(t, entry)
	whole := uint64(len(m.read(t, "binary_runtime_measurements")))
	options := serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"again-1": m.ekHex}}
	s := newServer(t, options)
	var got imaOffsets
	trust := func(why string, want ...uint64) {
		t.Helper()
		if _, err := attest(t, m.machine, s, got.watch(t)); err != nil {
			t.Fatalf("%s: %v", why, err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: IMA chunks at %v, want %v", why, got, want)
		}
	}
	trust("the first time", 0)
	trust("nothing is new", whole)
	m.measure(t, entry) // the kernel measures a file again when it changed back
	trust("one entry is new", whole)
	trust("and is known then", whole+uint64(len(entry)))
	m.reboot(t)
	trust("after a reboot the list is shorter", boot, 0)
	trust("and known again", boot)
	check(t, s.configure(t, options))
	trust("a new configuration judges anew", 0)

	m.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
	_, err := attest(t, m.machine, s, got.watch(t))
	refused(t, s, err, audit.Untrusted, "ima.file")
	if !slices.Equal(got, imaOffsets{boot}) {
		t.Errorf("IMA chunks at %v, want %d", got, boot)
	}
	_, err = attest(t, m.machine, s, got.watch(t))
	refused(t, s, err, audit.Untrusted, "ima.file")
	if !slices.Equal(got, imaOffsets{0}) {
		t.Errorf("after a refusal: IMA chunks at %v, want the whole list", got)
	}
}

func TestThreat11_AListThatWasCutSinceTheLastAttestationIsRefused(t *testing.T) {
	f := newFleet(t, "cut")
	list := f.victim.read(t, "binary_runtime_measurements")
	check(t, os.WriteFile(f.victim.file("binary_runtime_measurements"), list[:len(list)-102], 0o600))
	_, err := attest(t, f.victim, f.s, nil)
	refused(t, f.s, err, audit.Untrusted, "ima.shorter")
}
