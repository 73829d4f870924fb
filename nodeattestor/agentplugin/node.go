package agentplugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
)

// maxEventLog bounds what is read of the TCG event log, in bytes; the server's bound is
// what decides.
const maxEventLog = 64 << 20

// node is the machine during one attestation.
type node struct {
	config *config
	dev    *tpmdev.Device
	ak     tpmdev.AK
	tag    []byte // signed tag document, nil when there is none
	logs   map[evidence.LogKind]*logReader
	// unusable says which EK certificates of the TPM cannot be used, and why.
	unusable []string
	// line is the kernel's command line, "" where lineErr says why there is none to send.
	line    string
	lineErr error
}

func openNode(ctx context.Context, c *config) (*node, error) {
	dev, err := c.device.open(ctx, c)
	if err != nil {
		return nil, err
	}
	n := &node{config: c, dev: dev, logs: map[evidence.LogKind]*logReader{}}
	if n.ak, err = dev.AK(ctx, c.dataDir); err != nil {
		return nil, err
	}
	return n, nil
}

// device is the TPM of a configuration, from its first attestation on: it knows the keys
// that a hardware TPM takes long to derive. It has nothing open between two calls, so nobody closes it.
type device struct {
	mu  sync.Mutex
	dev *tpmdev.Device
}

func (d *device) open(ctx context.Context, c *config) (*tpmdev.Device, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dev != nil {
		return d.dev, nil
	}
	dev, err := tpmdev.OpenContext(ctx, c.tpm, tpmdev.Options{Template: c.ekTemplate, AKType: c.akType})
	if err != nil {
		return nil, err
	}
	d.dev = dev
	return dev, nil
}

func (n *node) close() error {
	var err error
	for _, l := range n.logs {
		err = errors.Join(err, l.close())
	}
	return err
}

// payload says who this machine is and what it can show.
func (n *node) payload(ctx context.Context) ([]byte, error) {
	e, err := n.dev.Endorsement(ctx)
	if err != nil {
		return nil, err
	}
	banks, err := n.dev.Banks(ctx)
	if err != nil {
		return nil, err
	}
	p := &evidence.Payload{EKCertificates: e.Certs, AKPublic: n.ak.Public, Banks: banks}
	n.unusable = n.dev.Unusable()
	if len(e.Certs) == 0 {
		p.EKPublic = e.Public
		p.EKNotes = ekNotes(n.unusable)
	}
	if p.HasEventLog, err = exists(n.config.eventLog); err != nil {
		return nil, err
	}
	if p.HasIMA, err = exists(n.config.imaLog); err != nil {
		return nil, err
	}
	if p.HasUserspaceLog, err = exists(n.config.systemdLog); err != nil {
		return nil, err
	}
	if n.config.tagDocument != "" {
		if n.tag, err = boundedfile.Read(n.config.tagDocument, evidence.MaxTagDocument); err != nil {
			return nil, err
		}
	}
	p.HasTag = n.tag != nil
	if n.config.tokenPath != "" { // read each time: the kubelet renews it
		token, err := boundedfile.Read(n.config.tokenPath, evidence.MaxToken)
		if err != nil {
			return nil, err
		}
		p.Token = bytes.TrimSpace(token)
	}
	n.line, n.lineErr = readCommandLine(n.config.commandLine)
	return p.Marshal()
}

// readCommandLine reads the kernel's command line, which is an offer: measurements prove it. A message holds UTF-8 alone.
func readCommandLine(path string) (string, error) {
	line, err := boundedfile.Read(path, evidence.MaxCommandLine)
	if err == nil && !utf8.Valid(line) {
		err = fmt.Errorf("%s is not UTF-8", path)
	}
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(line), "\n"), nil
}

// ekNotes are what a message has room for. Texts in it are UTF-8.
func ekNotes(all []string) []string {
	var out []string
	for _, note := range all[:min(len(all), evidence.MaxEKNotes)] {
		out = append(out, strings.ToValidUTF8(note[:min(len(note), evidence.MaxEKNote)], ""))
	}
	return out
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// respond answers the challenge. The logs are opened after the quote, so that they hold
// at least what was quoted.
func (n *node) respond(ctx context.Context, data []byte) ([]byte, error) {
	c, err := evidence.ParseChallenge(data)
	if err != nil {
		return nil, err
	}
	r := &evidence.Response{CommandLine: n.line}
	if r.Secret, err = n.dev.Activate(ctx, n.ak, c.CredentialBlob, c.EncryptedSecret); err != nil {
		return nil, err
	}
	if r.Quotes, err = n.quoteWithLog(ctx, c); err != nil {
		return nil, err
	}
	if c.TagIndex != 0 {
		if r.Tag, err = n.certifyTag(ctx, c); err != nil {
			return nil, err
		}
	}
	if r.Chunks, err = n.firstChunks(c); err != nil {
		return nil, err
	}
	return r.Marshal()
}

func (n *node) quote(ctx context.Context, c *evidence.Challenge) ([]evidence.Quote, error) {
	var sels []nodeclaim.Selection
	for _, s := range c.Selections {
		sels = append(sels, nodeclaim.Selection{Bank: s.Bank, PCRs: s.PCRs})
	}
	quotes, err := n.dev.Quote(ctx, n.ak, c.Nonce, sels)
	if err != nil {
		return nil, err
	}
	var out []evidence.Quote
	for i, q := range quotes {
		w := evidence.Quote{Bank: q.Bank, Attest: q.Attest, Signature: q.Signature}
		for _, pcr := range sels[i].PCRs {
			w.Values = append(w.Values, q.Values[pcr])
		}
		out = append(out, w)
	}
	return out, nil
}

func (n *node) certifyTag(ctx context.Context, c *evidence.Challenge) (*evidence.TagEvidence, error) {
	if n.tag == nil {
		return nil, fmt.Errorf("the server asks for an asset tag; configure tag_document")
	}
	cert, err := n.dev.CertifyTag(ctx, n.ak, c.Nonce, c.TagIndex)
	if err != nil {
		return nil, err
	}
	return &evidence.TagEvidence{Document: n.tag, Attest: cert.Attest, Signature: cert.Signature}, nil
}

// firstChunks opens the kernel's logs and sends the start of each along with the response; a message has no room for
// more, so systemd's is sent when it is asked for.
func (n *node) firstChunks(c *evidence.Challenge) ([]evidence.Chunk, error) {
	log, err := boundedfile.Read(n.config.eventLog, maxEventLog)
	if err != nil {
		return nil, err
	}
	n.logs[evidence.EventLog] = &logReader{kind: evidence.EventLog, from: io.NopCloser(bytes.NewReader(log))}
	wanted := []evidence.LogKind{evidence.EventLog}
	if c.WantIMA {
		if err := n.openIMA(c.IMAOffset); err != nil {
			return nil, err
		}
		wanted = append(wanted, evidence.IMALog)
	}
	var out []evidence.Chunk
	for _, k := range wanted {
		chunk, err := n.logs[k].next()
		if err != nil {
			return nil, err
		}
		out = append(out, *chunk)
	}
	return out, nil
}

// goOn answers a request for the next chunk of a log.
func (n *node) goOn(_ context.Context, data []byte) ([]byte, error) {
	c, err := evidence.ParseContinue(data)
	if err != nil {
		return nil, err
	}
	l := n.logs[c.Log]
	if l == nil {
		return nil, fmt.Errorf("the server asks for the %s, which it did not ask for in its challenge", c.Log)
	}
	if c.Log == evidence.IMALog && c.Offset == 0 && l.offset != 0 {
		// What the server knew of an earlier attestation is of another boot: it wants the whole list.
		if err := n.openIMA(0); err != nil {
			return nil, err
		}
		l = n.logs[c.Log]
	}
	if c.Offset != l.offset {
		return nil, fmt.Errorf("the server asks for the %s at offset %d, next is %d", c.Log, c.Offset, l.offset)
	}
	chunk, err := l.next()
	if err != nil {
		return nil, err
	}
	return chunk.Marshal()
}

// openIMA opens the IMA list anew, at an offset in bytes.
func (n *node) openIMA(offset uint64) error {
	if old := n.logs[evidence.IMALog]; old != nil {
		if err := old.close(); err != nil {
			return err
		}
		delete(n.logs, evidence.IMALog)
	}
	f, err := os.Open(n.config.imaLog)
	if err != nil {
		return err
	}
	l := &logReader{kind: evidence.IMALog, from: f}
	n.logs[evidence.IMALog] = l
	return l.skip(offset)
}

// logReader reads one log from front to back. The kernel's log files have no size and
// grow while they are read, so only the end of a read says where they end.
type logReader struct {
	kind   evidence.LogKind
	from   io.ReadCloser
	offset uint64
}

// skip reads over what the server has seen before. A log that has less, after a reboot for example, is
// then at its end, and the next chunk tells the server where that is.
func (l *logReader) skip(n uint64) error {
	if n > 1<<40 {
		return fmt.Errorf("the server asks for the %s at offset %d", l.kind, n)
	}
	skipped, err := io.CopyN(io.Discard, l.from, int64(n))
	l.offset = uint64(skipped) //nolint:gosec // never negative
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the %s: %w", l.kind, err)
	}
	return nil
}

func (l *logReader) next() (*evidence.Chunk, error) {
	raw := make([]byte, evidence.MaxChunkRaw)
	n, err := io.ReadFull(l.from, raw)
	final := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if err != nil && !final {
		return nil, fmt.Errorf("read the %s: %w", l.kind, err)
	}
	chunk, err := evidence.NewChunk(l.kind, l.offset, raw[:n], final)
	if err != nil {
		return nil, err
	}
	l.offset += uint64(n) //nolint:gosec // never negative
	return chunk, nil
}

func (l *logReader) close() error { return l.from.Close() }
