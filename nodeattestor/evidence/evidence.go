// Package evidence is the wire format between the two node attestor plugins: what
// an agent sends (Payload, Response, Chunk) and what a server asks (Challenge,
// Continue). It trusts nothing and decides nothing.
//
// Every message is a six-byte header (the letters KLSN, a version, a message kind)
// followed by one CBOR item in the core deterministic encoding of RFC 8949, 4.2.1,
// with integer keys. Parsing is strict: an unknown version or kind, an unknown or
// repeated key, an indefinite length, trailing bytes, a field over its limit, or an
// encoding that is not the one Marshal would have written is refused, so one message
// has exactly one spelling. No message is above MaxMessage bytes; logs travel in
// zstd-compressed chunks (RFC 8878) whose decompressed size is bounded before any
// memory is taken.
//
// The agent controls every byte of Payload, Response and Chunk.
package evidence

import (
	"bytes"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// MaxMessage is the size limit in bytes of every message in both directions. gRPC's
// default of 4 MiB stands between plugin, agent and server; this stays well below.
const MaxMessage = 1 << 20

// Version is the wire version that this package writes and the only one it reads. 2 has the log of user space.
const Version = 2

// Limits of single fields, in bytes or elements.
const (
	MaxCertificates   = 8
	MaxCertificate    = 8 << 10
	MaxPublic         = 2 << 10
	MaxToken          = 16 << 10
	MaxBanks          = 4
	MaxAttest         = 4 << 10
	MaxSignature      = 2 << 10
	MaxCredential     = 2 << 10
	MaxTagDocument    = 64 << 10
	MaxChunksPerReply = 2
	MaxCommandLine    = 8 << 10
	MaxEKNotes        = 8
	MaxEKNote         = 240
	NonceSize         = 32
	SecretSize        = 32
)

// LogKind tells the logs apart.
type LogKind uint8

// The logs that a node may send.
const (
	EventLog LogKind = 1 // TCG event log, the bytes of binary_bios_measurements
	IMALog   LogKind = 2 // IMA log, the bytes of binary_runtime_measurements
	// UserspaceLog is systemd's log of what it measured after boot, the bytes of tpm2-measure.log.
	UserspaceLog LogKind = 3
)

// String is the log's name as errors write it.
func (k LogKind) String() string {
	switch k {
	case EventLog:
		return "TCG event log"
	case IMALog:
		return "IMA log"
	case UserspaceLog:
		return "user-space event log"
	}
	return fmt.Sprintf("log kind %d", uint8(k))
}

// Payload opens an attestation: who the node claims to be and what it has to show.
type Payload struct {
	// EKCertificates is the EK certificate in DER, then intermediates that it may need.
	EKCertificates [][]byte `cbor:"1,keyasint,omitempty"`
	// EKPublic is the EK's TPM2B_PUBLIC. It is used only to find the key in the inventory
	// when there is no certificate; a certificate's key always comes from the certificate.
	EKPublic []byte `cbor:"2,keyasint,omitempty"`
	// AKPublic is the AK's TPM2B_PUBLIC.
	AKPublic []byte `cbor:"3,keyasint"`
	// Banks lists the TPM's allocated PCR banks.
	Banks []nodeclaim.HashAlg `cbor:"4,keyasint"`
	// HasEventLog, HasIMA and HasTag say what the node can show when asked.
	HasEventLog bool `cbor:"5,keyasint"`
	HasIMA      bool `cbor:"6,keyasint"`
	HasTag      bool `cbor:"7,keyasint"`
	// Token is a Kubernetes projected service-account token for node binding, optional.
	Token []byte `cbor:"8,keyasint,omitempty"`
	// HasUserspaceLog is as HasEventLog and so on.
	HasUserspaceLog bool `cbor:"9,keyasint,omitempty"`
	// EKNotes say why certificates that the TPM holds cannot be used, for the server's refusal. An agent sends them only where it
	// has no certificate to show: a server before 2026-11-29 takes no payload with them (SPIRE upgrades servers before agents).
	EKNotes []string `cbor:"10,keyasint,omitempty"`
}

// Challenge asks the node to prove that AK and EK live in one TPM and to quote.
type Challenge struct {
	CredentialBlob  []byte      `cbor:"1,keyasint"` // TPMS_ID_OBJECT
	EncryptedSecret []byte      `cbor:"2,keyasint"` // content of a TPM2B_ENCRYPTED_SECRET
	Nonce           []byte      `cbor:"3,keyasint"` // NonceSize random bytes, used once
	Selections      []Selection `cbor:"4,keyasint"` // exactly what to quote
	TagIndex        uint32      `cbor:"5,keyasint,omitempty"`
	WantIMA         bool        `cbor:"6,keyasint"`
	IMAOffset       uint64      `cbor:"7,keyasint"` // byte offset to resume the IMA log at
	// WantUserspaceLog says that the log of user space will be asked for.
	WantUserspaceLog bool `cbor:"8,keyasint,omitempty"`
}

// Selection is one bank's PCRs on the wire.
type Selection struct {
	Bank nodeclaim.HashAlg `cbor:"1,keyasint"`
	PCRs []int             `cbor:"2,keyasint"`
}

// Response answers a Challenge.
type Response struct {
	Secret []byte       `cbor:"1,keyasint"` // the activated credential
	Quotes []Quote      `cbor:"2,keyasint"` // one per selection, in the challenge's order
	Tag    *TagEvidence `cbor:"3,keyasint,omitempty"`
	// Chunks may carry the start of each log, to save a round trip each.
	Chunks []Chunk `cbor:"4,keyasint,omitempty"`
	// CommandLine is what the kernel says its command line is. PCRs hold only its digest;
	// it counts as a fact only when a quoted digest confirms it.
	CommandLine string `cbor:"5,keyasint,omitempty"`
}

// Quote is one bank's quote and the value of every selected PCR, in index order.
type Quote struct {
	Bank      nodeclaim.HashAlg `cbor:"1,keyasint"`
	Attest    []byte            `cbor:"2,keyasint"` // TPMS_ATTEST as signed
	Signature []byte            `cbor:"3,keyasint"` // TPMT_SIGNATURE
	Values    [][]byte          `cbor:"4,keyasint"`
}

// TagEvidence is the asset tag's document and the TPM's certificate of the NV index
// that holds its digest; the certified content is in Attest.
type TagEvidence struct {
	Document  []byte `cbor:"1,keyasint"`
	Attest    []byte `cbor:"2,keyasint"` // TPMS_ATTEST of TPM2_NV_Certify
	Signature []byte `cbor:"3,keyasint"`
}

// Continue asks for the next chunk of one log.
type Continue struct {
	Log    LogKind `cbor:"1,keyasint"`
	Offset uint64  `cbor:"2,keyasint"` // byte offset in the raw log
}

// Chunk is a piece of a log. Data decompresses to the bytes from Offset on; Final
// says that the log ended with them when it was read.
type Chunk struct {
	Log    LogKind `cbor:"1,keyasint"`
	Offset uint64  `cbor:"2,keyasint"`
	Data   []byte  `cbor:"3,keyasint"` // one zstd frame, at most MaxChunkRaw bytes decompressed
	Final  bool    `cbor:"4,keyasint"`
}

type kind byte

const (
	kindPayload   kind = 1
	kindChallenge kind = 2
	kindResponse  kind = 3
	kindContinue  kind = 4
	kindChunk     kind = 5
)

func (k kind) String() string {
	names := map[kind]string{kindPayload: "payload", kindChallenge: "challenge", kindResponse: "response",
		kindContinue: "continue", kindChunk: "chunk"}
	if n, ok := names[k]; ok {
		return n
	}
	return fmt.Sprintf("kind %d", byte(k))
}

const headerSize = 6

var magic = [4]byte{'K', 'L', 'S', 'N'}

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxArrayElements:  64,
		MaxMapPairs:       16,
		MaxNestedLevels:   6,
	}.DecMode())
)

// must is for the two constant option sets above, which cannot fail at run time
// without failing in every test.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

type message interface{ validate() error }

func marshal(k kind, m message) ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("evidence: write %s: %w", k, err)
	}
	body, err := encMode.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("evidence: write %s: %w", k, err)
	}
	if size := headerSize + len(body); size > MaxMessage {
		return nil, fmt.Errorf("evidence: write %s: %d bytes, more than the limit of %d", k, size, MaxMessage)
	}
	return append([]byte{magic[0], magic[1], magic[2], magic[3], Version, byte(k)}, body...), nil
}

func parse(k kind, data []byte, m message) error {
	body, err := parseHeader(k, data)
	if err != nil {
		return err
	}
	if err := decMode.Unmarshal(body, m); err != nil {
		return fmt.Errorf("evidence: read %s: %w", k, err)
	}
	if err := m.validate(); err != nil {
		return fmt.Errorf("evidence: read %s: %w", k, err)
	}
	again, err := encMode.Marshal(m)
	if err != nil {
		return fmt.Errorf("evidence: read %s: %w", k, err)
	}
	if !bytes.Equal(again, body) {
		return fmt.Errorf("evidence: read %s: not in the deterministic encoding of RFC 8949, 4.2.1", k)
	}
	return nil
}

func parseHeader(want kind, data []byte) ([]byte, error) {
	switch {
	case len(data) > MaxMessage:
		return nil, fmt.Errorf("evidence: read %s: %d bytes, more than the limit of %d", want, len(data), MaxMessage)
	case len(data) < headerSize:
		return nil, fmt.Errorf("evidence: read %s: %d bytes, shorter than the header of %d", want, len(data), headerSize)
	case !bytes.Equal(data[:4], magic[:]):
		return nil, fmt.Errorf("evidence: read %s: does not start with KLSN; the peer is not a Keelson node attestor", want)
	case data[4] != Version:
		return nil, fmt.Errorf("evidence: read %s: wire version %d, this side speaks %d; install the same Keelson release on agent and server", want, data[4], Version)
	case kind(data[5]) != want:
		return nil, fmt.Errorf("evidence: read %s: got a %s instead", want, kind(data[5]))
	}
	return data[headerSize:], nil
}

// Marshal writes the message, or says which field is over its limit.
func (p *Payload) Marshal() ([]byte, error) { return marshal(kindPayload, p) }

// Marshal writes the message, or says which field is over its limit.
func (c *Challenge) Marshal() ([]byte, error) { return marshal(kindChallenge, c) }

// Marshal writes the message, or says which field is over its limit.
func (r *Response) Marshal() ([]byte, error) { return marshal(kindResponse, r) }

// Marshal writes the message, or says which field is over its limit.
func (c *Continue) Marshal() ([]byte, error) { return marshal(kindContinue, c) }

// Marshal writes the message, or says which field is over its limit.
func (c *Chunk) Marshal() ([]byte, error) { return marshal(kindChunk, c) }

// ParsePayload reads a Payload; the agent controls the input.
func ParsePayload(data []byte) (*Payload, error) {
	m := &Payload{}
	return m, parse(kindPayload, data, m)
}

// ParseChallenge reads a Challenge; the server controls the input.
func ParseChallenge(data []byte) (*Challenge, error) {
	m := &Challenge{}
	return m, parse(kindChallenge, data, m)
}

// ParseResponse reads a Response; the agent controls the input.
func ParseResponse(data []byte) (*Response, error) {
	m := &Response{}
	return m, parse(kindResponse, data, m)
}

// ParseContinue reads a Continue; the server controls the input.
func ParseContinue(data []byte) (*Continue, error) {
	m := &Continue{}
	return m, parse(kindContinue, data, m)
}

// ParseChunk reads a Chunk; the agent controls the input.
func ParseChunk(data []byte) (*Chunk, error) {
	m := &Chunk{}
	return m, parse(kindChunk, data, m)
}
