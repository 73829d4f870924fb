package plugintest_test

import (
	"crypto/sha1" // what kernels before 5.8 extend
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// weakly asserts that a machine was trusted, and marked weak where operators and policies look.
func weakly(t *testing.T, m *machine, s *server) {
	t.Helper()
	attrs, err := attest(t, m, s, nil)
	check(t, err)
	if !slices.Contains(attrs.SelectorValues, "weak:true") {
		t.Errorf("selectors %v lack weak:true", attrs.SelectorValues)
	}
	lines := s.audit(t)
	if last := lines[len(lines)-1]; last.Outcome != audit.Trusted || !strings.Contains(strings.Join(last.Notes, "; "), "rests on SHA-1") {
		t.Errorf("the audit line is %+v, want a note on SHA-1", last)
	}
}

func TestATPMOfSHA1AloneIsMarkedWeak(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newBankMachine(t, ca, nodeclaim.SHA1).serve(t, "")
	newNode(t, "weak-bank")
	sel := nodeclaim.Selection{Bank: nodeclaim.SHA1, PCRs: quoted.PCRs}
	s := newServer(t, serverOptions{ca: ca, reference: captureIn(t, m, "old", sel), inventory: map[string][]string{"weak-bank": m.ekHex}, pcrs: pcrBlock(sel)})
	weakly(t, m, s)
	nodeTrust(t, "weak-bank", trusted)
	m.measureIn(t, []nodeclaim.HashAlg{nodeclaim.SHA1}, tpmtest.IMADigest("/usr/bin/backdoor", nodeclaim.SHA1, hashed(nodeclaim.SHA1, []byte("evil"))))
	_, err := attest(t, m, s, nil)
	refused(t, s, err, audit.Untrusted, "ima.file")
}

// padded makes a machine's kernel one before 5.8: PCR 10 of every bank is extended with the SHA-1 of an entry, padded with zeros.
func (m *machine) padded(t testing.TB, banks []nodeclaim.HashAlg, entries ...[]byte) {
	t.Helper()
	f := must2(os.OpenFile(m.file("binary_runtime_measurements"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600))(t)
	for _, entry := range entries {
		must2(f.Write(entry))(t)
		digests := map[nodeclaim.HashAlg][]byte{}
		for _, b := range banks {
			digests[b] = append(slices.Clone(entry[4:4+sha1.Size]), make([]byte, b.Size()-sha1.Size)...)
		}
		check(t, m.dev.PCRExtend(t.Context(), 10, digests))
	}
	check(t, f.Close())
}

func TestAKernelThatPadsSHA1IsTakenWhereToldAndMarkedWeak(t *testing.T) {
	banks := []nodeclaim.HashAlg{nodeclaim.SHA1, nodeclaim.SHA256}
	ca := must2(tpmtest.NewCA())(t)
	newer := newBankMachine(t, ca, banks...).serve(t, "") // its kernel extends each bank with its own hash
	old := newUnmeasured(t, ca, banks...).serve(t, "")
	log := old.read(t, "binary_bios_measurements")
	old.padded(t, banks, aggregateEntry(t, log, nodeclaim.SHA1), tpmtest.IMAEntry("/usr/bin/containerd", []byte("containerd")))
	newNode(t, "padded-old")
	newNode(t, "padded-newer")
	selections := []nodeclaim.Selection{{Bank: nodeclaim.SHA1, PCRs: quoted.PCRs}, quoted}

	set := captureWith(t, old, "old", ima.Options{PaddedSHA1: true}, selections...)
	o := serverOptions{ca: ca, reference: set, inventory: map[string][]string{"padded-old": old.ekHex, "padded-newer": newer.ekHex}}
	o.pcrs = pcrBlock(selections...)
	s := newServer(t, o)
	_, err := attest(t, old, s, nil)
	refused(t, s, err, audit.Untrusted, "ima.pcr")
	o.extra = "ima_padded_sha1 = true\n"
	s = newServer(t, o)
	weakly(t, old, s)
	nodeTrust(t, "padded-old", trusted)
	_, err = attest(t, newer, s, nil)
	refused(t, s, err, audit.Untrusted, "ima.")
	old.padded(t, banks, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
	_, err = attest(t, old, s, nil)
	refused(t, s, err, audit.Untrusted, "ima.file")
	t.Run("without PCRs 0 to 7 of sha1 it is refused at start", func(t *testing.T) {
		o.pcrs = "" // everybody's, which are of sha256 alone
		if err := s.configure(t, o); err == nil || !strings.Contains(err.Error(), "boot_aggregate over PCRs 0 to 7 of bank sha1") {
			t.Errorf("got %v", err)
		}
	})
}

// captureWith is captureIn with options of how the list is read.
func captureWith(t testing.TB, m *machine, name string, opt ima.Options, selections ...nodeclaim.Selection) []byte {
	t.Helper()
	key := must2(m.dev.AK(t.Context(), m.file("data")))(t)
	nonce := []byte("capture")
	var parts []quote.PCRs
	for i, q := range must2(m.dev.Quote(t.Context(), key, nonce, selections))(t) {
		parts = append(parts, must2(quote.Verify(must2(ak.Parse(key.Public))(t), q.Evidence, nonce, selections[i]))(t).PCRs)
	}
	pcrs := must2(quote.Merge(parts...))(t)
	boot := must2(eventlog.Replay(m.read(t, "binary_bios_measurements"), pcrs))(t)
	boot = boot.ConfirmCommandLine(strings.TrimSpace(string(m.read(t, "cmdline.txt"))))
	r := ima.NewReplayer(pcrs, opt)
	must2(r.Write(m.read(t, "binary_runtime_measurements")))(t)
	list := must2(r.Finish())(t)
	return must2(reference.Capture(name, reference.Evidence{Boot: boot, PCRs: pcrs, IMA: &list}))(t).Marshal()
}
