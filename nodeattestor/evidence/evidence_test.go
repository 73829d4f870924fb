package evidence_test

import (
	"bytes"
	"crypto/rand"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

func payload() *evidence.Payload {
	return &evidence.Payload{
		EKCertificates: [][]byte{{1, 2, 3}},
		AKPublic:       []byte{4, 5, 6},
		Banks:          []nodeclaim.HashAlg{nodeclaim.SHA256},
		HasEventLog:    true,
	}
}

func response(t *testing.T) *evidence.Response {
	t.Helper()
	c, err := evidence.NewChunk(evidence.EventLog, 0, []byte("log"), true)
	if err != nil {
		t.Fatal(err)
	}
	return &evidence.Response{
		Secret: []byte("secret"),
		Quotes: []evidence.Quote{{Bank: nodeclaim.SHA256, Attest: []byte{1}, Signature: []byte{2}, Values: [][]byte{make([]byte, 32)}}},
		Tag:    &evidence.TagEvidence{Document: []byte{1}, Attest: []byte{2}, Signature: []byte{3}},
		Chunks: []evidence.Chunk{*c},
	}
}

func challenge() *evidence.Challenge {
	return &evidence.Challenge{
		CredentialBlob: []byte{1}, EncryptedSecret: []byte{2}, Nonce: make([]byte, evidence.NonceSize),
		Selections: []evidence.Selection{{Bank: nodeclaim.SHA256, PCRs: []int{0, 7}}}, WantIMA: true,
	}
}

func TestEveryMessageSurvivesARoundTrip(t *testing.T) {
	p := payload()
	b, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := evidence.ParsePayload(b); err != nil || !cmp.Equal(got, p) {
		t.Errorf("payload: %v, %s", err, cmp.Diff(p, got))
	}
	r := response(t)
	if b, err = r.Marshal(); err != nil {
		t.Fatal(err)
	}
	if got, err := evidence.ParseResponse(b); err != nil || !cmp.Equal(got, r) {
		t.Errorf("response: %v, %s", err, cmp.Diff(r, got))
	}
	c := challenge()
	if b, err = c.Marshal(); err != nil {
		t.Fatal(err)
	}
	if got, err := evidence.ParseChallenge(b); err != nil || !cmp.Equal(got, c) {
		t.Errorf("challenge: %v, %s", err, cmp.Diff(c, got))
	}
	n := &evidence.Continue{Log: evidence.IMALog, Offset: 7}
	if b, err = n.Marshal(); err != nil {
		t.Fatal(err)
	}
	if got, err := evidence.ParseContinue(b); err != nil || !cmp.Equal(got, n) {
		t.Errorf("continue: %v, %s", err, cmp.Diff(n, got))
	}
}

func TestMalformedMessagesAreRefusedByName(t *testing.T) {
	good, err := payload().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	edit := func(f func([]byte) []byte) []byte { return f(bytes.Clone(good)) }
	cases := map[string]struct {
		data []byte
		want string
	}{
		"nothing at all":            {nil, "shorter than the header"},
		"above the message limit":   {make([]byte, evidence.MaxMessage+1), "more than the limit of 1048576"},
		"not ours":                  {[]byte("GET / HTTP/1.1"), "does not start with KLSN"},
		"a later version":           {edit(func(b []byte) []byte { b[4] = 3; return b }), "wire version 3"},
		"an earlier version":        {edit(func(b []byte) []byte { b[4] = 1; return b }), "wire version 1"},
		"another kind":              {edit(func(b []byte) []byte { b[5] = 3; return b }), "got a response instead"},
		"a trailing byte":           {append(bytes.Clone(good), 0), "extraneous data"},
		"cut in the middle":         {good[:len(good)-3], "unexpected EOF"},
		"a header and nothing more": {good[:6], "EOF"},
		"an unknown key":            {[]byte("KLSN\x02\x01\xa1\x18\x63\x01"), "unknown field"},
		"a repeated key":            {[]byte("KLSN\x02\x01\xa2\x03\x41\x01\x03\x41\x01"), "duplicate"},
		"an indefinite-length map":  {[]byte("KLSN\x02\x01\xbf\xff"), "indefinite-length"},
		"a longer spelling of a length": {
			[]byte("KLSN\x02\x01\xa6\x02\x41\x01\x03\x58\x01\x01\x04\x81\x0b\x05\xf4\x06\xf4\x07\xf4"), "deterministic encoding"},
		"no EK at all":        {mustRaw(t, &evidence.Payload{AKPublic: []byte{1}, Banks: []nodeclaim.HashAlg{nodeclaim.SHA256}}), "ek_certificates: missing"},
		"an empty map":        {[]byte("KLSN\x02\x01\xa0"), "missing"},
		"a huge array header": {[]byte("KLSN\x02\x01\xa1\x01\x9b\x00\x00\x00\x01\x00\x00\x00\x00"), "exceeded max number of elements"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := evidence.ParsePayload(tc.data)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got error %v, want one that contains %q", err, tc.want)
			}
		})
	}
}

// mustRaw spells a payload that Marshal refuses, by filling the hole and cutting it out again.
func mustRaw(t *testing.T, p *evidence.Payload) []byte {
	t.Helper()
	// keys 3..7 only, in the deterministic encoding
	return append([]byte("KLSN\x02\x01\xa5\x03\x41"), append(p.AKPublic, []byte("\x04\x81\x0b\x05\xf4\x06\xf4\x07\xf4")...)...)
}

func TestFieldLimitsNameTheFieldAndTheLimit(t *testing.T) {
	cases := map[string]struct {
		change func(*evidence.Payload)
		want   string
	}{
		"an oversized certificate":   {func(p *evidence.Payload) { p.EKCertificates[0] = make([]byte, 8<<10+1) }, "ek_certificates[0]: size 8193, more than the limit of 8192"},
		"an empty certificate":       {func(p *evidence.Payload) { p.EKCertificates[0] = nil }, "ek_certificates[0]: missing"},
		"too many certificates":      {func(p *evidence.Payload) { p.EKCertificates = slicesOf(9) }, "ek_certificates: size 9"},
		"no AK":                      {func(p *evidence.Payload) { p.AKPublic = nil }, "ak_public: missing"},
		"an oversized AK":            {func(p *evidence.Payload) { p.AKPublic = make([]byte, 4096) }, "ak_public: size 4096"},
		"a bank that does not exist": {func(p *evidence.Payload) { p.Banks[0] = 9 }, "banks[0]: 0x0009"},
		"no bank":                    {func(p *evidence.Payload) { p.Banks = nil }, "banks: missing"},
		"an oversized token":         {func(p *evidence.Payload) { p.Token = make([]byte, 1<<20) }, "token: size 1048576"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := payload()
			tc.change(p)
			_, err := p.Marshal()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got error %v, want one that contains %q", err, tc.want)
			}
		})
	}
}

func slicesOf(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = []byte{1}
	}
	return out
}

func TestQuoteValuesMustHaveTheBanksSize(t *testing.T) {
	r := response(t)
	r.Quotes[0].Values[0] = make([]byte, 20)
	if _, err := r.Marshal(); err == nil || !strings.Contains(err.Error(), "values[0]: size 20, a sha256 PCR has 32") {
		t.Fatalf("got error %v", err)
	}
}

func TestThreat24_DecompressionBombIsRefusedWithinBounds(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bomb := enc.EncodeAll(make([]byte, 256<<20), nil)
	if len(bomb) > evidence.MaxChunkData {
		t.Fatalf("the bomb has %d bytes and would not pass as a chunk", len(bomb))
	}
	c := evidence.Chunk{Log: evidence.IMALog, Data: bomb}
	if _, err := c.Raw(); err == nil {
		t.Fatal("a chunk that decompresses to 256 MiB was accepted")
	}
	allocated := testing.Benchmark(func(b *testing.B) {
		for range b.N {
			if _, err := c.Raw(); err == nil {
				b.Fatal("accepted")
			}
		}
	}).AllocedBytesPerOp()
	if allocated > 4<<20 {
		t.Errorf("refusing the bomb took %d bytes", allocated)
	}
}

func TestAnEmptyChunkIsOnlyAllowedAtTheEnd(t *testing.T) {
	for _, final := range []bool{true, false} {
		c, err := evidence.NewChunk(evidence.EventLog, 0, nil, final)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Raw(); (err == nil) != final {
			t.Errorf("final %t: error %v", final, err)
		}
		b, err := c.Marshal()
		if err != nil {
			t.Fatalf("final %t: cannot be sent: %v", final, err)
		}
		if _, err := evidence.ParseChunk(b); err != nil {
			t.Errorf("final %t: %v", final, err)
		}
	}
}

func TestAChunkIsExactlyOneFrame(t *testing.T) {
	zstdOf := func(raw []byte, opts ...zstd.EOption) []byte {
		enc, err := zstd.NewWriter(nil, opts...)
		if err != nil {
			t.Fatal(err)
		}
		return enc.EncodeAll(raw, nil)
	}
	raw := bytes.Repeat([]byte("measured "), 40000)
	one := zstdOf(raw)
	skippable := []byte{0x50, 0x2A, 0x4D, 0x18, 2, 0, 0, 0, 'h', 'i'}
	cases := map[string]struct {
		data []byte
		ok   bool
	}{
		"one frame":                       {one, true},
		"one frame without a checksum":    {zstdOf(raw, zstd.WithEncoderCRC(false)), true},
		"incompressible":                  {zstdOf([]byte("abc")), true},
		"one byte, many times":            {zstdOf(make([]byte, 300000)), true},
		"two frames":                      {append(zstdOf([]byte("abc")), zstdOf([]byte("abc"))...), false},
		"a skippable frame":               {skippable, false},
		"a skippable frame before":        {append(bytes.Clone(skippable), one...), false},
		"a skippable frame behind":        {append(bytes.Clone(one), skippable...), false},
		"a byte behind":                   {append(bytes.Clone(one), 0), false},
		"an empty frame behind":           {append(bytes.Clone(one), zstdOf(nil, zstd.WithZeroFrames(true))...), false},
		"the checksum cut off":            {one[:len(one)-4], false},
		"cut":                             {one[:len(one)/2], false},
		"no byte":                         {nil, false},
		"a frame that needs a dictionary": {zstdOf(raw, zstd.WithEncoderDictRaw(7, raw[:1000])), false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c := evidence.Chunk{Log: evidence.IMALog, Data: tc.data, Final: true}
			if _, err := c.Raw(); (err == nil) != tc.ok {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestTwoIncompressibleChunksFitInOneResponse(t *testing.T) {
	raw := make([]byte, evidence.MaxChunkRaw)
	if _, err := rand.Read(raw); err != nil {
		t.Fatal(err)
	}
	c, err := evidence.NewChunk(evidence.IMALog, 0, raw, false)
	if err != nil {
		t.Fatal(err)
	}
	r := response(t)
	r.Chunks = []evidence.Chunk{*c, *c}
	r.Tag.Document = make([]byte, evidence.MaxTagDocument)
	b, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := evidence.ParseResponse(b)
	if err != nil {
		t.Fatal(err)
	}
	back, err := got.Chunks[1].Raw()
	if err != nil || !bytes.Equal(back, raw) {
		t.Fatalf("the log bytes did not survive: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	p, err := payload().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	c, err := challenge().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Add(c)
	f.Fuzz(func(t *testing.T, data []byte) {
		same := func(again []byte, err error) {
			if err != nil || !bytes.Equal(again, data) {
				t.Fatalf("a parsed message is written in another way: %v", err)
			}
		}
		if m, err := evidence.ParsePayload(data); err == nil {
			same(m.Marshal())
		}
		if m, err := evidence.ParseChallenge(data); err == nil {
			same(m.Marshal())
		}
		if m, err := evidence.ParseResponse(data); err == nil {
			same(m.Marshal())
			for i := range m.Chunks {
				if raw, err := m.Chunks[i].Raw(); err == nil && len(raw) > evidence.MaxChunkRaw {
					t.Fatal("a chunk grew beyond its limit")
				}
			}
		}
		if m, err := evidence.ParseContinue(data); err == nil {
			same(m.Marshal())
		}
		if m, err := evidence.ParseChunk(data); err == nil {
			same(m.Marshal())
		}
	})
}

func TestRoomIsUsedAgainAndHoldsNothingOfBefore(t *testing.T) {
	room := make([]byte, evidence.MaxChunkRaw+64)
	for _, raw := range [][]byte{bytes.Repeat([]byte("long"), 1000), []byte("short"), bytes.Repeat([]byte{1}, evidence.MaxChunkRaw), {}} {
		c, err := evidence.NewChunk(evidence.IMALog, 0, raw, true)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.RawInto(room)
		if err != nil || !bytes.Equal(got, raw) {
			t.Fatalf("%d bytes, want %d: %v", len(got), len(raw), err)
		}
		if len(got) > 0 && &got[0] != &room[0] {
			t.Errorf("%d bytes were put elsewhere", len(got))
		}
		if none, err := c.RawInto(nil); err != nil || !bytes.Equal(none, raw) {
			t.Errorf("without room: %v", err)
		}
	}
}

func TestNotesOfAPayloadAreBoundedAndLeftOutWhereThereAreNone(t *testing.T) {
	plain, err := payload().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	p := payload()
	p.EKNotes = []string{}
	if again, err := p.Marshal(); err != nil || !bytes.Equal(plain, again) {
		t.Errorf("a payload without notes is written in another way: %v", err)
	}
	p.EKNotes = []string{strings.Repeat("n", evidence.MaxEKNote)}
	raw, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if back, err := evidence.ParsePayload(raw); err != nil || len(back.EKNotes) != 1 || back.EKNotes[0] != p.EKNotes[0] {
		t.Errorf("read as %+v, %v", back, err)
	}
	for name, notes := range map[string][]string{"too long": {p.EKNotes[0] + "n"}, "empty": {""}, "too many": make([]string, evidence.MaxEKNotes+1), "no UTF-8": {"\xff"}} {
		for i := range notes {
			if name == "too many" {
				notes[i] = "n"
			}
		}
		p.EKNotes = notes
		raw, err := p.Marshal()
		if err == nil {
			_, err = evidence.ParsePayload(raw)
		}
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
