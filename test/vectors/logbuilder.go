package vectors

import (
	"encoding/binary"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
)

// Types of events that tests write (TCG PFP 1.06, table 27).
const (
	NoAction  uint32 = 0x3
	Separator uint32 = 0x4
	IPL       uint32 = 0xD
	Variable  uint32 = 0x80000001
	Image     uint32 = 0x80000003
	Action    uint32 = 0x80000007
	HCRTM     uint32 = 0x80000010
	Authority uint32 = 0x800000E0
)

// Log builds a crypto-agile log and the PCRs that a TPM would have after it.
type Log struct {
	banks  []nodeclaim.HashAlg
	raw    []byte
	values map[nodeclaim.HashAlg]map[int][]byte
}

// NewLog begins a log with a header for the banks; PCRs 0 to 15 are those that Quoted has.
func NewLog(banks ...nodeclaim.HashAlg) *Log {
	l := &Log{banks: banks, values: map[nodeclaim.HashAlg]map[int][]byte{}}
	header := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	header = binary.LittleEndian.AppendUint32(header, uint32(len(banks)))
	for _, b := range banks {
		header = binary.LittleEndian.AppendUint16(header, uint16(b))
		header = binary.LittleEndian.AppendUint16(header, uint16(b.Size()))
		l.values[b] = map[int][]byte{}
		for i := range 16 {
			l.values[b][i] = make([]byte, b.Size())
		}
	}
	header = append(header, 0)
	l.raw = append(l.raw, make([]byte, 4)...)
	l.raw = binary.LittleEndian.AppendUint32(l.raw, NoAction)
	l.raw = append(l.raw, make([]byte, 20)...)
	l.raw = binary.LittleEndian.AppendUint32(l.raw, uint32(len(header)))
	l.raw = append(l.raw, header...)
	return l
}

// Measure logs data and extends its digest.
func (l *Log) Measure(pcr int, typ uint32, data []byte) *Log { return l.Event(pcr, typ, data, data) }

// Event extends the digest of measured and logs other data, unless the type is NoAction.
func (l *Log) Event(pcr int, typ uint32, measured, data []byte) *Log {
	if typ != NoAction {
		l.Extend(pcr, measured)
	}
	return l.Fake(pcr, typ, measured, data)
}

// Fake logs an event that was never extended.
func (l *Log) Fake(pcr int, typ uint32, measured, data []byte) *Log {
	l.raw = binary.LittleEndian.AppendUint32(l.raw, uint32(pcr))
	l.raw = binary.LittleEndian.AppendUint32(l.raw, typ)
	l.raw = binary.LittleEndian.AppendUint32(l.raw, uint32(len(l.banks)))
	for _, b := range l.banks {
		h := b.New()
		h.Write(measured)
		l.raw = h.Sum(binary.LittleEndian.AppendUint16(l.raw, uint16(b)))
	}
	l.raw = binary.LittleEndian.AppendUint32(l.raw, uint32(len(data)))
	l.raw = append(l.raw, data...)
	return l
}

// Extend extends a PCR behind the log's back.
func (l *Log) Extend(pcr int, measured []byte) *Log {
	for _, b := range l.banks {
		digest, pcrs := b.New(), b.New()
		digest.Write(measured)
		pcrs.Write(l.values[b][pcr])
		pcrs.Write(digest.Sum(nil))
		l.values[b][pcr] = pcrs.Sum(nil)
	}
	return l
}

// Set gives a PCR a value, in every bank its last byte.
func (l *Log) Set(pcr int, last byte) *Log {
	for _, b := range l.banks {
		l.values[b][pcr] = make([]byte, b.Size())
		l.values[b][pcr][b.Size()-1] = last
	}
	return l
}

// Unquote leaves a PCR out of the quote.
func (l *Log) Unquote(pcr int) *Log {
	for _, b := range l.banks {
		delete(l.values[b], pcr)
	}
	return l
}

// Raw is the log.
func (l *Log) Raw() []byte { return l.raw }

// Quoted quotes the PCRs as they stand.
func (l *Log) Quoted(t testing.TB) quote.PCRs { return Quote(t, l.values) }

// UEFIVariable is UEFI_VARIABLE_DATA for an ASCII name.
func UEFIVariable(guid [16]byte, name string, data []byte) []byte {
	out := append([]byte{}, guid[:]...)
	out = binary.LittleEndian.AppendUint64(out, uint64(len(name)))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(data)))
	out = append(out, UTF16(name)...)
	return append(out, data...)
}

// UTF16 is ASCII as UTF-16LE.
func UTF16(s string) []byte {
	var out []byte
	for _, c := range []byte(s) {
		out = append(out, c, 0)
	}
	return out
}

// GUIDs of the variables that secure boot reads.
var (
	GlobalGUID   = [16]byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	DatabaseGUID = [16]byte{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
)
