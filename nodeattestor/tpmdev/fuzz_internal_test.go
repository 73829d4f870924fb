package tpmdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// script is a port of a TPM, or of somebody on the bus, who answers with whatever stands
// in a text: for each command a length of two bytes and so many bytes.
type script struct {
	text []byte
	out  []byte
}

func (s *script) Write(p []byte) (int, error) {
	s.out = nil
	if len(s.text) >= 2 {
		n := min(int(binary.BigEndian.Uint16(s.text)), len(s.text)-2)
		s.out, s.text = s.text[2:2+n], s.text[2+n:]
	}
	return len(p), nil
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.out) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.out)
	s.out = s.out[n:]
	return n, nil
}

func (s *script) SetDeadline(time.Time) error { return nil }

func (s *script) Close() error { return nil }

// answers frames responses as script takes them.
func answers(responses ...[]byte) []byte {
	var out []byte
	for _, r := range responses {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(r))), r...)
	}
	return out
}

// withBody is a successful response without sessions.
func withBody(body ...byte) []byte {
	out := binary.BigEndian.AppendUint32([]byte{0x80, 1}, uint32(10+len(body)))
	return append(append(out, 0, 0, 0, 0), body...)
}

// FuzzAnswers feeds the agent answers that no TPM gave. Each operation ends, with an
// error or not, and none of them panics: an agent that crashes attests nothing.
func FuzzAnswers(f *testing.F) {
	f.Add(uint8(0), answers(withBody(0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0xff, 0xff)))                   // banks
	f.Add(uint8(1), answers(withBody(0, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 1, 5, 'I', 'F', 'X', 0)))                   // properties
	f.Add(uint8(2), answers(withBody(0, 0, 0, 0, 1, 0, 0, 0, 1, 0x81, 1, 0, 1)))                                  // handles
	f.Add(uint8(3), answers(withBody(0, 14, 1, 0x80, 1, 0, 0, 0x0b, 2, 2, 0, 2, 0, 0, 0, 32, 0, 2, 0, 0x0b)))     // NV public area
	f.Add(uint8(4), answers(withBody(0, 0, 0, 1, 0, 0, 0, 1, 0, 0x0b, 3, 1, 0, 0, 0, 0, 0, 1, 0, 2, 0xaa, 0xbb))) // PCRs
	f.Add(uint8(5), answers([]byte{0x80, 2, 0, 0, 0, 10, 0, 0, 0, 0}, []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x22}))
	f.Fuzz(func(t *testing.T, which uint8, text []byte) {
		if len(text) > 64<<10 {
			return
		}
		port := &script{text: text}
		l := &link{ctx: t.Context(), port: port, stream: true, long: time.Minute, short: time.Minute}
		d := &Device{path: "fuzz", saved: map[string]savedKey{}}
		d.now = operation{tpm: l}
		sel := nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{0}}
		operations := []func() error{
			func() error { _, err := d.banks(); return err },
			func() error { _, err := d.properties(0x100); return err },
			func() error { return d.flushLeftovers() },
			func() error { _, err := d.nvRead(0x01800100); return err },
			func() error { _, err := d.pcrRead(sel); return err },
			func() error { _, err := d.loadEK(ek.Templates()[0], []byte{1}); return err },
			func() error { _, _, err := d.endorsementKey(); return err },
			func() error { _, err := d.readChain(); return err },
			func() error { return d.keyAlgorithms(&Info{}) },
		}
		err := guard(operations[int(which)%len(operations)])
		if err == nil && len(port.text) == len(text) && len(text) > 0 {
			t.Error("an operation succeeded that asked the TPM nothing")
		}
		if err != nil && errors.Is(err, errNoIndex) && which%9 != 3 && which%9 != 6 && which%9 != 7 {
			t.Errorf("operation %d says %v", which, err)
		}
	})
}

// FuzzAKFile reads what may stand in the agent's data directory: what is taken for a key
// is written as it was read.
func FuzzAKFile(f *testing.F) {
	for _, kind := range []AKType{ECDSA, RSA} {
		k := AK{kind: kind, unique: make([]byte, kind.uniqueSize()), Public: []byte{0, 1, 2}, salt: ek.Templates()[0], saltEK: []byte{3}}
		data, err := k.marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"version":1}{"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := parseAK(data)
		if err != nil {
			return
		}
		once, err := k.marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseAK(once)
		if err != nil {
			t.Fatalf("%q is written as %q, which is refused: %v", data, once, err)
		}
		if twice, err := again.marshal(); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%q reads as %q (%v)", once, twice, err)
		}
	})
}

// FuzzCutCertificate: whatever an index holds, the certificate is one DER SEQUENCE of it, or there is a reason.
func FuzzCutCertificate(f *testing.F) {
	der := []byte{0x30, 3, 2, 1, 5}
	f.Add(der)
	f.Add(append(bytes.Clone(der), 0xFF, 0xFF))
	f.Add(append([]byte{0x10, 1, 0, 0, 7, 0x10, 2}, der...))
	f.Add([]byte{0x10, 1, 0, 0xFF, 0xFF, 0x10, 2})
	f.Add([]byte{0x70, 1, 1}) // a SEQUENCE of another class
	f.Fuzz(func(t *testing.T, raw []byte) {
		cert, err := cutCertificate(raw)
		if (cert == nil) == (err == nil) {
			t.Fatalf("%x, %v", cert, err)
		}
		if err == nil && (cert[0] != 0x30 || !bytes.Contains(raw, cert)) {
			t.Errorf("%x is no SEQUENCE of %x", cert, raw)
		}
	})
}
