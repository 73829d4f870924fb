package plugintest_test

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/nodeattestor/verify"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// newBankMachine is newMachine with a TPM that has these banks and no other: the firmware's setup chose them. What booted is
// "good", measured by a firmware and a kernel (ima_hash) that use the last of these banks for what they hash once.
func newBankMachine(t testing.TB, ca *tpmtest.CA, banks ...nodeclaim.HashAlg) *machine {
	t.Helper()
	m := newUnmeasured(t, ca, banks...)
	main := banks[len(banks)-1]
	m.measureIn(t, banks, aggregateEntry(t, m.read(t, "binary_bios_measurements"), main))
	for _, file := range []string{"/init", "/usr/bin/containerd"} {
		m.measureIn(t, banks, tpmtest.IMADigest(file, main, hashed(main, []byte(file))))
	}
	return m
}

// newUnmeasured is a machine of newBankMachine whose kernel has measured nothing yet.
func newUnmeasured(t testing.TB, ca *tpmtest.CA, banks ...nodeclaim.HashAlg) *machine {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("skipped: swtpm is not installed, and the simulator forgets its banks when it stops")
	}
	m := &machine{dir: tpmtest.Dir(t)}
	state := tpmtest.Dir(t)
	path, stop, err := tpmtest.StartSocket(t.Context(), state)
	check(t, err)
	check(t, tpmtest.Allocate(path, banks...))
	check(t, stop())
	m.tpm, stop, err = tpmtest.StartSocket(t.Context(), state)
	check(t, err)
	t.Cleanup(func() { check(t, stop()) })
	check(t, tpmtest.Manufacture(t.Context(), m.tpm, ca))
	m.dev = must2(tpmdev.Open(m.tpm))(t)
	if got := must2(m.dev.Banks(t.Context()))(t); fmt.Sprint(got) != fmt.Sprint(banks) {
		t.Fatalf("the TPM has banks %v, wanted %v alone", got, banks)
	}
	for _, e := range must2(m.dev.Endorsements(t.Context()))(t) {
		m.ekHex = append(m.ekHex, e.Hash.String())
	}
	line := strings.TrimSpace(string(recorded(t, "cmdline.txt")))
	log := must2(tpmtest.Rehash(recorded(t, "binary_bios_measurements"), knownOf(line), banks...))(t)
	for name, data := range map[string][]byte{"binary_bios_measurements": log, "binary_runtime_measurements": nil, "cmdline.txt": []byte(line + "\n")} {
		check(t, os.WriteFile(m.file(name), data, 0o600))
	}
	check(t, tpmtest.Replay(t.Context(), m.dev, must2(tpmtest.ParseBoot(log, nil))(t)))
	return m
}

// recorded is a file of the recorded boot "good".
func recorded(t testing.TB, name string) []byte {
	t.Helper()
	return must2(os.ReadFile("../vectors/measured-boots/good/" + name))(t)
}

// knownOf is what a boot of a unified kernel image measures and its log does not hold.
func knownOf(line string) [][]byte {
	var wide []byte
	for _, unit := range utf16.Encode([]rune(line)) {
		wide = binary.LittleEndian.AppendUint16(wide, unit)
	}
	known := [][]byte{append(wide, 0, 0), []byte(line)}
	for _, section := range []string{".linux", ".osrel", ".cmdline", ".initrd"} {
		known = append(known, append([]byte(section), 0))
	}
	return known
}

// aggregateEntry is the first entry of an IMA list: boot_aggregate of a bank after an event log, over PCRs 0 to 9, for sha1 0 to 7.
func aggregateEntry(t testing.TB, log []byte, bank nodeclaim.HashAlg) []byte {
	t.Helper()
	values := must2(must2(eventlog.Parse(log))(t).Unverified(bank))(t)
	var all []byte
	last := 9
	if bank == nodeclaim.SHA1 {
		last = 7
	}
	for i := range last + 1 {
		all = append(all, values[i]...)
	}
	return tpmtest.IMADigest("boot_aggregate", bank, hashed(bank, all))
}

func hashed(bank nodeclaim.HashAlg, data []byte) []byte {
	h := bank.New()
	h.Write(data)
	return h.Sum(nil)
}

// captureIn is machine.capture for other PCRs than everybody's.
func captureIn(t testing.TB, m *machine, name string, selections ...nodeclaim.Selection) []byte {
	t.Helper()
	return captureWith(t, m, name, ima.Options{}, selections...)
}

// pcrBlock is the line of a selection in the server plugin's pcrs {}.
func pcrBlock(selections ...nodeclaim.Selection) string {
	var lines []string
	for _, s := range selections {
		lines = append(lines, fmt.Sprintf("%s = [%s]", s.Bank, strings.Trim(strings.ReplaceAll(fmt.Sprint(s.PCRs), " ", ", "), "[]")))
	}
	return strings.Join(lines, "\n")
}

func TestBanksOfEverySizeFromBootToVerdict(t *testing.T) {
	for name, banks := range map[string][]nodeclaim.HashAlg{
		"sha384":                   {nodeclaim.SHA384},
		"sha512":                   {nodeclaim.SHA512},
		"sha256 and 384 and 512":   {nodeclaim.SHA256, nodeclaim.SHA384, nodeclaim.SHA512},
		"sha512 with a sha1 aside": {nodeclaim.SHA1, nodeclaim.SHA512},
	} {
		t.Run(name, func(t *testing.T) {
			ca := must2(tpmtest.NewCA())(t)
			m := newBankMachine(t, ca, banks...).serve(t, "")
			node := "bank-" + strings.ReplaceAll(name, " ", "-")
			newNode(t, node)
			var selections []nodeclaim.Selection
			for _, b := range banks {
				if !b.Weak() {
					selections = append(selections, nodeclaim.Selection{Bank: b, PCRs: quoted.PCRs})
				}
			}
			main := banks[len(banks)-1]
			o := serverOptions{ca: ca, reference: captureIn(t, m, "good", selections[len(selections)-1]), inventory: map[string][]string{node: m.ekHex}}
			if !strings.Contains(string(o.reference), "bank: "+main.String()) {
				t.Fatalf("the set is of another bank: %s", o.reference)
			}
			o.pcrs = pcrBlock(selections...)
			s := newServer(t, o)
			attrs, err := attest(t, m, s, nil)
			check(t, err)
			for _, want := range []string{"ref:good", "ima:clean", "secureboot:false"} {
				if !strings.Contains(strings.Join(attrs.SelectorValues, " "), want) {
					t.Errorf("selectors %v lack %s", attrs.SelectorValues, want)
				}
			}
			nodeTrust(t, node, trusted)
			m.measureIn(t, banks, tpmtest.IMADigest("/usr/bin/tool", main, hashed(main, []byte("a tool"))))
			_, err = attest(t, m, s, nil)
			refused(t, s, err, audit.Untrusted, "ima.file")
			nodeTrust(t, node, untrusted)
		})
	}
	t.Run("a bank that the TPM does not have", func(t *testing.T) {
		ca := must2(tpmtest.NewCA())(t)
		m := newBankMachine(t, ca, nodeclaim.SHA512).serve(t, "")
		newNode(t, "bank-missing")
		s := newServer(t, serverOptions{ca: ca, reference: captureIn(t, m, "good", nodeclaim.Selection{Bank: nodeclaim.SHA512, PCRs: quoted.PCRs}),
			inventory: map[string][]string{"bank-missing": m.ekHex}})
		_, err := attest(t, m, s, nil)
		refused(t, s, err, audit.Unproved, "payload.bank")
		noNodeTrust(t, "bank-missing")
	})
}

// measureIn is machine.measure for a TPM of other banks.
func (m *machine) measureIn(t testing.TB, banks []nodeclaim.HashAlg, entry []byte) {
	t.Helper()
	f := must2(os.OpenFile(m.file("binary_runtime_measurements"), os.O_APPEND|os.O_WRONLY, 0o600))(t)
	must2(f.Write(entry))(t)
	check(t, f.Close())
	check(t, tpmtest.Replay(t.Context(), m.dev, must2(tpmtest.ParseIMA(entry, banks))(t)))
}

// fixed is a source that gives the same bytes each time that it is begun anew: two challenges of it have one secret and nonce.
type fixed struct{ n byte }

func (f *fixed) Read(p []byte) (int, error) {
	for i := range p {
		f.n = f.n*5 + 7
		p[i] = f.n
	}
	return len(p), nil
}

// given is the evidence of a real TPM over one challenge, which is judged again and again with something changed.
type given struct {
	policy   *verify.Policy
	payload  *evidence.Payload
	response *evidence.Response
	log      []byte
	list     []byte
	now      time.Time
}

func newGiven(t testing.TB, bank nodeclaim.HashAlg) given {
	t.Helper()
	ca := must2(tpmtest.NewCA())(t)
	m := newBankMachine(t, ca, bank)
	sel := nodeclaim.Selection{Bank: bank, PCRs: quoted.PCRs}
	g := given{now: time.Now(), log: m.read(t, "binary_bios_measurements"), list: m.read(t, "binary_runtime_measurements"),
		policy: &verify.Policy{Anchors: ek.Anchors{Roots: []*x509.Certificate{ca.Root()}, Mode: ek.Certificate}, Selections: []nodeclaim.Selection{sel},
			IMA: true, References: must2(reference.NewSets(must2(reference.ParseSet(captureIn(t, m, "good", sel)))(t)))(t)}}
	check(t, g.policy.Validate())
	key := must2(m.dev.AK(t.Context(), m.file("data")))(t)
	g.payload = &evidence.Payload{EKCertificates: must2(m.dev.Endorsement(t.Context()))(t).Certs, AKPublic: key.Public,
		Banks: must2(m.dev.Banks(t.Context()))(t), HasEventLog: true, HasIMA: true}
	c := must2(verify.Begin(g.payload, g.policy, nil, g.now, &fixed{}))(t).Message()
	g.response = &evidence.Response{Secret: must2(m.dev.Activate(t.Context(), key, c.CredentialBlob, c.EncryptedSecret))(t),
		CommandLine: strings.TrimSpace(string(m.read(t, "cmdline.txt")))}
	for _, q := range must2(m.dev.Quote(t.Context(), key, c.Nonce, g.policy.Selections))(t) {
		w := evidence.Quote{Bank: bank, Attest: q.Attest, Signature: q.Signature}
		for _, i := range sel.PCRs {
			w.Values = append(w.Values, q.Values[i])
		}
		g.response.Quotes = append(g.response.Quotes, w)
	}
	return g
}

// judge is the whole appraisal of an answer to the one challenge.
func (g given) judge(t testing.TB, answer, log, list []byte) (nodeclaim.Claims, error) {
	t.Helper()
	r, err := evidence.ParseResponse(answer)
	if err != nil {
		return nodeclaim.Claims{}, err
	}
	c := must2(verify.Begin(g.payload, g.policy, nil, g.now, &fixed{}))(t)
	p, err := c.Prove(r, g.now)
	if err != nil {
		return nodeclaim.Claims{}, err
	}
	b := must2(must2(p.Named(""))(t).Bind(verify.Known{}))(t)
	logs := map[evidence.LogKind][]byte{evidence.EventLog: log, evidence.IMALog: list}
	read, err := b.Read(nil, func(next *evidence.Continue) (*evidence.Chunk, error) {
		return evidence.NewChunk(next.Log, next.Offset, logs[next.Log][next.Offset:], true)
	})
	if err != nil {
		return nodeclaim.Claims{}, err
	}
	end := read.Finish(g.now)
	return end.Claims, end.Err
}

// templateNames are the offsets of the bytes of a list in which its entries' templates are named (Linux
// Documentation/security/IMA-templates.rst: PCR, SHA-1 of the data, length and name of the template, length and data).
func templateNames(t testing.TB, list []byte) map[int]bool {
	t.Helper()
	out := map[int]bool{}
	length := func(at int) int {
		if at+4 > len(list) {
			t.Fatalf("the list ends at %d, within an entry", len(list))
		}
		return int(binary.LittleEndian.Uint32(list[at:]))
	}
	for at := 0; at < len(list); {
		at += 4 + 20
		n := length(at)
		at += 4
		for i := range n {
			out[at+i] = true
		}
		at += n
		at += 4 + length(at)
	}
	return out
}

// What a real TPM and a boot in the wide banks give as evidence is judged with each of its bytes changed. It is refused, or what was
// changed is no proof of anything, and the claims are the same: the offered command line, an event's type or text.
func TestEvidenceOfWideBanksWithAnyByteFlippedProvesNothingElse(t *testing.T) {
	for _, bank := range []nodeclaim.HashAlg{nodeclaim.SHA384, nodeclaim.SHA512} {
		t.Run(bank.String(), func(t *testing.T) {
			g := newGiven(t, bank)
			answer := must2(g.response.Marshal())(t)
			want, err := g.judge(t, answer, g.log, g.list)
			check(t, err)
			if want.Reference != "good" || want.IMA != nodeclaim.IMAClean || want.Weak {
				t.Fatalf("claims %+v", want)
			}
			flip := func(what string, data []byte, judge func([]byte) (nodeclaim.Claims, error)) (accepted []int) {
				for i := range data {
					flipped := bytes.Clone(data)
					flipped[i] ^= 1 << (i % 8)
					got, err := judge(flipped)
					if err == nil && fmt.Sprint(got) != fmt.Sprint(want) {
						t.Fatalf("%s with byte %d flipped proves something else:\n%v\n%v", what, i, got, want)
					}
					if err == nil {
						accepted = append(accepted, i)
					}
				}
				return accepted
			}
			// Of the answer, nothing but the text of the command line may be another; of the list, nothing but the names of
			// templates, which are in no digest: an unknown one is read where its data begin as those of the known ones do.
			line := bytes.Index(answer, []byte(g.response.CommandLine))
			for _, i := range flip("answer", answer, func(b []byte) (nodeclaim.Claims, error) { return g.judge(t, b, g.log, g.list) }) {
				if i < line || i >= line+len(g.response.CommandLine) {
					t.Errorf("byte %d of the answer may be changed", i)
				}
			}
			names := templateNames(t, g.list)
			for _, i := range flip("IMA list", g.list, func(b []byte) (nodeclaim.Claims, error) { return g.judge(t, answer, g.log, b) }) {
				if !names[i] {
					t.Errorf("byte %d of the IMA list may be changed", i)
				}
			}
			n := len(flip("event log", g.log, func(b []byte) (nodeclaim.Claims, error) { return g.judge(t, answer, b, g.list) }))
			t.Logf("%d bytes of answer, %d of IMA list, %d of event log, of which %d are types and texts that no digest covers", len(answer), len(g.list), len(g.log), n)
		})
	}
}
