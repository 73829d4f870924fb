package bench

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/nodeattestor/verify"
	"github.com/keelson-project/keelson/test/tpmtest"
	"github.com/keelson-project/keelson/test/vectors"
)

var now = time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)

var selection = nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}}

// machine is a node in software: a certified EK, an AK that signs what it is told, the event log of a real machine
// and an IMA list that grows.
type machine struct {
	payload evidence.Payload
	ak      *tpmtest.SoftAK
	anchors ek.Anchors
	values  map[int][]byte
	log     []byte
	list    []byte
	file    *os.File // holds the list instead, once spilled
	size    int
	entries int
	policy  *verify.Policy
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// realLog is the largest of the real machines' logs from which PCRs of the SHA-256 bank can be replayed.
func realLog(t testing.TB) (name string, raw []byte, values map[int][]byte) {
	t.Helper()
	for _, n := range vectors.RealLogs(t) {
		r := vectors.RealLog(t, vectors.Expect(t, n))
		if len(r) <= len(raw) {
			continue
		}
		log, err := eventlog.Parse(r)
		if err != nil {
			continue
		}
		v, err := log.Unverified(nodeclaim.SHA256)
		if err != nil {
			continue
		}
		all := map[nodeclaim.HashAlg]map[int][]byte{nodeclaim.SHA256: v}
		if boot, err := eventlog.Replay(r, vectors.Quote(t, all)); err != nil || len(boot.Banks()) == 0 {
			continue
		}
		name, raw, values = n, r, v
	}
	if raw == nil {
		t.Fatal("no real log replays")
	}
	return name, raw, values
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{ak: must(tpmtest.NewSoftAK())(t)}
	ca := must(tpmtest.NewCA())(t)
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	cert := must(ca.IssueEK(key.Public(), tpmtest.EKOptions{}))(t)
	m.payload = evidence.Payload{EKCertificates: [][]byte{cert, ca.Issuer().Raw}, AKPublic: m.ak.Public(),
		Banks: []nodeclaim.HashAlg{nodeclaim.SHA256}, HasEventLog: true, HasIMA: true}
	m.anchors = ek.Anchors{Roots: []*x509.Certificate{ca.Root()}, Mode: ek.Certificate}
	_, m.log, m.values = realLog(t)
	for _, i := range selection.PCRs {
		if m.values[i] == nil {
			m.values[i] = make([]byte, sha256.Size)
		}
	}
	m.values[10] = make([]byte, sha256.Size)
	h := sha256.New()
	for i := range 10 {
		h.Write(m.values[i])
	}
	m.measure(entry("boot_aggregate", h.Sum(nil)))
	return m
}

// entry is one of template ima-sig, as the kernel writes it.
func entry(name string, digest []byte) []byte {
	e := tpmtest.IMAEntry(name, nil)
	at := bytes.Index(e, append([]byte("sha256:\x00"), sha256.New().Sum(nil)...)) + len("sha256:\x00")
	copy(e[at:], digest)
	data := e[len(e)-(4+8+32+4+len(name)+1+4):]
	id := nodeclaim.SHA1.New()
	id.Write(data)
	copy(e[4:24], id.Sum(nil))
	return e
}

// templateData is an entry's template data.
func templateData(e []byte) []byte { return e[4+20+4+len("ima-sig")+4:] }

// program is the entry of some program, told apart by its number.
func program(i int) []byte {
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(i)))
	return entry(fmt.Sprintf("/usr/lib/x86_64-linux-gnu/package-%06d/bin/program", i), sum[:])
}

// measure appends to the list and extends PCR 10.
func (m *machine) measure(e []byte) {
	m.entries++
	m.size += len(e)
	if m.file == nil {
		m.list = append(m.list, e...)
	} else if _, err := m.file.Write(e); err != nil {
		panic(err)
	}
	d := sha256.Sum256(templateData(e))
	v := sha256.Sum256(append(slices.Clone(m.values[10]), d[:]...))
	m.values[10] = v[:]
}

// spill moves the list into a file, so that it takes no memory.
func (m *machine) spill(t testing.TB) {
	t.Helper()
	m.file = must(os.Create(filepath.Join(t.TempDir(), "list")))(t)
	t.Cleanup(func() { _ = m.file.Close() })
	must(m.file.Write(m.list))(t)
	m.list = nil
}

func (m *machine) run(from, to int) {
	for i := from; i < to; i++ {
		m.measure(program(i))
	}
}

func (m *machine) quote(t testing.TB, nonce []byte) evidence.Quote {
	t.Helper()
	q := evidence.Quote{Bank: nodeclaim.SHA256}
	h := sha256.New()
	for _, i := range selection.PCRs {
		q.Values = append(q.Values, m.values[i])
		h.Write(m.values[i])
	}
	a := tpmtest.QuoteAttest(nonce, h.Sum(nil), tpmtest.Select(nodeclaim.SHA256, selection.PCRs...))
	name := must(ak.Parse(m.ak.Public()))(t).Name()
	qn := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, 0x4000000B), name...))
	a.QualifiedSigner = tpm2.TPM2BName{Buffer: append([]byte{0, 0x0b}, qn[:]...)}
	q.Attest = tpm2.Marshal(a)
	q.Signature = must(m.ak.Sign(q.Attest))(t)
	return q
}

// accept makes a policy that accepts the machine as it is now, more entries of the same included.
func (m *machine) accept(t testing.TB) {
	t.Helper()
	pcrs := m.quoted(t)
	boot := must(eventlog.Replay(m.log, pcrs))(t)
	r := ima.NewReplayer(pcrs, ima.Options{})
	must(r.Write(m.list))(t)
	list := must(r.Finish())(t)
	set := must(reference.Capture("good", reference.Evidence{Boot: boot, PCRs: pcrs, IMA: &list}))(t)
	m.trust(t, must(reference.NewSets(set))(t))
}

func (m *machine) trust(t testing.TB, sets reference.Sets) {
	t.Helper()
	m.policy = &verify.Policy{Anchors: m.anchors, Selections: []nodeclaim.Selection{selection}, IMA: true, References: sets}
	if err := m.policy.Validate(); err != nil {
		t.Fatal(err)
	}
}

// ignore lets whatever runs in a directory run.
func (m *machine) ignore(t testing.TB, dir string) {
	t.Helper()
	text := strings.Replace(string(m.policy.References[0].Marshal()), "violations: deny", "ignoreDirectories: ["+dir+"]\n  violations: deny", 1)
	m.trust(t, must(reference.NewSets(must(reference.ParseSet([]byte(text)))(t)))(t))
}

func (m *machine) selected() map[int][]byte {
	out := map[int][]byte{}
	for _, i := range selection.PCRs {
		out[i] = m.values[i]
	}
	return out
}

// drawn records the randomness that the server drew, so that the machine knows the secret.
type drawn struct{ bytes.Buffer }

func (d *drawn) Read(p []byte) (int, error) {
	n, err := rand.Read(p)
	d.Write(p[:n])
	return n, err
}

// chunks are a log's as an agent sends them, from an offset on.
func chunks(t testing.TB, kind evidence.LogKind, log []byte, from int) []*evidence.Chunk {
	t.Helper()
	var out []*evidence.Chunk
	for at := from; ; {
		end := min(at+evidence.MaxChunkRaw, len(log))
		out = append(out, must(evidence.NewChunk(kind, uint64(at), log[at:end], end == len(log)))(t))
		if at = end; at == len(log) {
			return out
		}
	}
}

// quoted are the machine's PCRs, verified.
func (m *machine) quoted(t testing.TB) quote.PCRs {
	t.Helper()
	q := m.quote(t, []byte("capture"))
	return must(quote.Verify(must(ak.Parse(m.ak.Public()))(t), quote.Evidence{Attest: q.Attest, Signature: q.Signature, Values: m.selected()}, []byte("capture"), selection))(t).PCRs
}

// prove takes the steps of an attestation up to the logs. took is the server's CPU time, and c the challenge.
func (m *machine) prove(t testing.TB, earlier verify.Earlier) (b *verify.Bound, c *evidence.Challenge, took time.Duration) {
	t.Helper()
	source := &drawn{}
	start := cpu(t)
	challenge := must(verify.Begin(&m.payload, m.policy, earlier, now, source))(t)
	took = cpu(t) - start
	c = challenge.Message()
	response := &evidence.Response{Secret: source.Bytes()[:evidence.SecretSize], Quotes: []evidence.Quote{m.quote(t, c.Nonce)}}
	start = cpu(t)
	b = must(must(must(challenge.Prove(response, now))(t).Named(""))(t).Bind(verify.Known{}))(t)
	return b, c, took + cpu(t) - start
}

// finish ends an attestation that must be trusted.
func finish(t testing.TB, c *verify.Complete) verify.Appraisal {
	t.Helper()
	end := c.Finish(now)
	if end.Outcome() != verify.Trusted {
		t.Fatalf("%s: %v", end.Outcome(), end.Err)
	}
	return end
}

// appraiseStreamed is appraise where each chunk is made when it is sent.
func (m *machine) appraiseStreamed(t testing.TB) (verify.Appraisal, time.Duration) {
	t.Helper()
	bound, _, took := m.prove(t, nil)
	start := cpu(t)
	buf := make([]byte, evidence.MaxChunkRaw)
	complete := must(bound.Read(nil, func(next *evidence.Continue) (*evidence.Chunk, error) {
		log := map[evidence.LogKind]*io.SectionReader{evidence.EventLog: io.NewSectionReader(bytes.NewReader(m.log), 0, int64(len(m.log))),
			evidence.IMALog: io.NewSectionReader(m.file, 0, int64(m.size))}[next.Log]
		n, err := log.ReadAt(buf, int64(next.Offset))
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		return evidence.NewChunk(next.Log, next.Offset, buf[:n], err != nil)
	}))(t)
	end := finish(t, complete)
	return end, took + cpu(t) - start
}

// appraise runs the server's half of an attestation and returns the CPU time that it took.
func (m *machine) appraise(t testing.TB, earlier verify.Earlier) (verify.Appraisal, time.Duration) {
	t.Helper()
	return m.appraiseSent(t, earlier, func(offset uint64) []*evidence.Chunk {
		return slices.Concat(chunks(t, evidence.EventLog, m.log, 0), chunks(t, evidence.IMALog, m.list, int(offset)))
	})
}

// appraiseSent is appraise with the chunks that send makes of the logs.
func (m *machine) appraiseSent(t testing.TB, earlier verify.Earlier, send func(imaOffset uint64) []*evidence.Chunk) (verify.Appraisal, time.Duration) {
	t.Helper()
	bound, c, took := m.prove(t, earlier)
	sent := send(c.IMAOffset)
	start := cpu(t)
	complete := must(bound.Read(nil, func(*evidence.Continue) (*evidence.Chunk, error) {
		if len(sent) == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		next := sent[0]
		sent = sent[1:]
		return next, nil
	}))(t)
	end := finish(t, complete)
	return end, took + cpu(t) - start
}
