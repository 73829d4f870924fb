package plugintest_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// busy is a machine on which files are measured while its agent attests: what the kernel does is done between two commands of the agent's.
type busy struct {
	*machine
	kernel string // the TPM's own socket, which the agent does not use

	mu            sync.Mutex
	before, after []func() // what happens at the next quotes, in turn
	quotes        int
}

func newBusy(t *testing.T, ca *tpmtest.CA) *busy {
	t.Helper()
	b := &busy{machine: newMachine(t, ca, "good")}
	b.kernel = b.tpm
	const quote = 0x158
	next := func(of *[]func()) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(*of) > 0 {
			(*of)[0]()
			*of = (*of)[1:]
		}
	}
	b.tpm = tpmtest.Between(t, b.kernel, func(command []byte, forward tpmtest.Forward) []byte {
		if tpmtest.Code(command) != quote {
			return forward(command)
		}
		b.mu.Lock()
		b.quotes++
		b.mu.Unlock()
		next(&b.before)
		out := forward(command)
		next(&b.after)
		return out
	})
	return b
}

// list appends an entry to the list, as the kernel does before it extends.
func (b *busy) list(t testing.TB, entry []byte) {
	f, err := os.OpenFile(b.file("binary_runtime_measurements"), os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.Write(entry)
	}
	if err != nil || f.Close() != nil {
		t.Error(err)
	}
}

// extend extends PCR 10, beside the agent: tpmdev's own way would flush what the agent has in the TPM.
func (b *busy) extend(t testing.TB, entry []byte) {
	tpm, err := linuxudstpm.Open(b.kernel)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = tpm.Close() }()
	extensions, err := tpmtest.ParseIMA(entry, []nodeclaim.HashAlg{nodeclaim.SHA256})
	if err != nil {
		t.Error(err)
	}
	for _, e := range extensions {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(e.PCR), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: e.Digests[nodeclaim.SHA256]}}},
		}.Execute(tpm)
		if err != nil {
			t.Error(err)
		}
	}
}

// runs lets a file be measured: listed, then extended.
func (b *busy) runs(t testing.TB, entry []byte) func() {
	return func() {
		b.list(t, entry)
		b.extend(t, entry)
	}
}

// at sets what happens before and after the next quotes.
func (b *busy) at(before, after []func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before, b.after, b.quotes = before, after, 0
}

// taken is how many quotes the TPM made since at.
func (b *busy) taken() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.quotes
}

// A list that grows while the quote is taken is no tampering: what came before the quote is judged, what came after it is judged the next time.
func TestThreat11_TheListGrowsWhileTheQuoteIsTaken(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newBusy(t, ca)
	newNode(t, "grows")
	tool := func(i int) []byte {
		return tpmtest.IMAEntry(fmt.Sprintf("/usr/lib/tool-%06d", i), binary.BigEndian.AppendUint32(nil, uint32(i)))
	}
	set := bytes.Replace(m.capture(t, "good"), []byte("\n  violations:"), []byte("\n  ignoreDirectories: [/usr/lib]\n  violations:"), 1)
	m.serve(t, "")
	s := newServer(t, serverOptions{ca: ca, reference: set, inventory: map[string][]string{"grows": m.ekHex}})
	size := func() uint64 { return uint64(len(m.read(t, "binary_runtime_measurements"))) }
	var got imaOffsets
	trust := func(why string, from uint64) {
		t.Helper()
		if _, err := attest(t, m.machine, s, got.watch(t)); err != nil {
			t.Fatalf("%s: %v", why, err)
		}
		if got[0] != from {
			t.Errorf("%s: the list was asked for from %d, want %d", why, got[0], from)
		}
	}
	trust("nothing happens", 0)
	known := size()

	m.at(nil, []func(){m.runs(t, tool(1))})
	trust("a file runs after the quote, before the list is read", known)
	trust("what ran after the quote was not taken for known", known)
	known = size()

	m.at([]func(){m.runs(t, tool(2)), m.runs(t, tool(3))}, nil)
	trust("files run between the values and the quote over them", known)
	if n := m.taken(); n < 3 {
		t.Errorf("%d quotes were taken; values that no quote covers must be read again", n)
	}
	known = size()

	m.list(t, tool(4)) // the kernel has listed a file, and is about to extend
	trust("a file is listed and not yet extended", known)
	m.extend(t, tool(4))
	trust("then it is", known)

	// A long list is sent in parts, and grows between these.
	for i := range 9000 {
		m.list(t, tool(100+i))
		m.extend(t, tool(100+i))
	}
	watch := got.watch(t)
	_, err := attest(t, m.machine, s, func(round int, msg []byte) []byte {
		if round > 0 {
			m.runs(t, tool(50000+round))()
		}
		return watch(round, msg)
	})
	check(t, err)
	if len(got) < 3 || !slices.IsSorted(got) {
		t.Errorf("the list came in parts at %v, want several", got)
	}
	nodeTrust(t, "grows", trusted)

	m.at(nil, []func(){m.runs(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))})
	if _, err := attest(t, m.machine, s, nil); err != nil {
		t.Errorf("what ran after the quote is not of this attestation: %v", err)
	}
	_, err = attest(t, m.machine, s, nil)
	refused(t, s, err, audit.Untrusted, "ima.file")
	nodeTrust(t, "grows", untrusted)
}
