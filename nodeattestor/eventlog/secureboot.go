package eventlog

import (
	"bytes"
	"encoding/binary"
	"slices"
	"unicode/utf16"
)

// variable is a measured UEFI_VARIABLE_DATA (TCG PFP 1.06, 10.2.6).
type variable struct {
	guid [16]byte
	name string
	data []byte
}

var (
	globalGUID   = [16]byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	databaseGUID = [16]byte{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
)

// maxVariableName is the length of a variable's name in UTF-16 units.
const maxVariableName = 512

// parseVariable reads UEFI_VARIABLE_DATA. It must fill data exactly.
func parseVariable(data []byte) (variable, bool) {
	v, rest, ok := cutVariable(data)
	return v, ok && len(rest) == 0
}

// cutVariable reads UEFI_VARIABLE_DATA and returns the bytes after it.
func cutVariable(data []byte) (v variable, after []byte, ok bool) {
	const head = 16 + 8 + 8
	if len(data) < head {
		return variable{}, nil, false
	}
	copy(v.guid[:], data)
	nameLen := binary.LittleEndian.Uint64(data[16:])
	dataLen := binary.LittleEndian.Uint64(data[24:])
	rest := data[head:]
	if nameLen > maxVariableName || uint64(len(rest)) < 2*nameLen || uint64(len(rest))-2*nameLen < dataLen {
		return variable{}, nil, false
	}
	if v.name, ok = decodeUTF16(rest[:2*nameLen]); !ok {
		return variable{}, nil, false
	}
	rest = rest[2*nameLen:]
	v.data = rest[:dataLen]
	return v, rest[dataLen:], true
}

// decodeUTF16 reads little-endian UTF-16 up to its final NULs.
func decodeUTF16(b []byte) (string, bool) {
	if len(b)%2 != 0 {
		return "", false
	}
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	for len(u) > 0 && u[len(u)-1] == 0 {
		u = u[:len(u)-1]
	}
	return string(utf16.Decode(u)), true
}

// secureBoot reads PCR 7 (TCG PFP 1.06, 3.3.4.8): before the separator the variables SecureBoot, PK, KEK, db and
// dbx, each as it was at power-on; whatever variable follows vouched for an image.
//
// Every event of PCR 7 must be confirmed: its digest is that of its data, or of a separator or
// known string, or a quirk covers it. One that is not could hide what was measured behind
// changed data, so the log is refused. Types are not looked at. A separator is known by its digest, so
// its data may be longer than that, as coreboot's are (StarLabsLtd/firmware#437).
//
// listed are the authorities with what older releases listed among them, see Facts.ListedAuthorities.
func (m measured) secureBoot() (out SecureBoot, listed []Authority, err error) {
	unknown := SecureBoot{State: SecureBootUnknown}
	s := keys{SecureBoot: unknown}
	separator := -1
	for _, e := range m.byPCR[7] {
		d := e.digest
		v, isVariable := parseVariable(e.data)
		switch {
		case m.separator(e) && separator >= 0:
			return unknown, nil, refuse("separator", "event %d is a second separator in PCR 7, after event %d: nothing measured after it can be placed", e.index, separator)
		case m.separator(e):
			separator = e.index
		case m.words.known[d] != "":
			s.Others = append(s.Others, d)
		case isVariable && m.covers(e, e.data):
			if err := s.add(v, d, separator < 0, e.index); err != nil {
				return unknown, nil, err
			}
		case m.covers(e, e.data):
			s.Others = append(s.Others, d)
		default:
			if q, v, ok := m.quirky(e); ok {
				s.addQuirky(q, v, d, separator < 0)
				continue
			}
			return unknown, nil, refuse("event", "event %d in PCR 7: its data is not what was measured (digest %s): the log was changed, or the firmware measures what it does not log", e.index, d)
		}
	}
	if separator < 0 { // what is a setting and what vouched for an image cannot be told apart
		return unknown, nil, nil
	}
	return s.SecureBoot, s.listed, nil
}

// keys is what PCR 7 says so far.
type keys struct {
	SecureBoot
	listed []Authority
}

// authority files a variable that let an image start.
func (s *keys) authority(name string, d Digest) {
	s.Authorities = append(s.Authorities, Authority{name, d})
	s.listed = append(s.listed, Authority{name, d})
}

// setting files a variable that let nothing start.
func (s *keys) setting(name string, d Digest) {
	s.Others = append(s.Others, d)
	s.listed = append(s.listed, Authority{name, d})
}

// quirk is a known way in which real software measures something else than the UEFI_VARIABLE_DATA that
// it logs.
type quirk struct {
	name    string
	measure func(logged []byte, v variable) []byte // what was really measured
	named   bool                                   // whether that has the variable's name in it
}

var quirks = []quirk{
	// shim before 15.3 (rhboot/shim commit 8a27a4809a6a): stray bytes after the variable, the last one not measured.
	{"shim-short", func(logged []byte, _ variable) []byte { return logged[:len(logged)-1] }, true},
	// Firmware of the TPM 1.2 era, and shim's first releases: the variable's content alone.
	{"content-only", func(_ []byte, v variable) []byte { return v.data }, false},
}

func (m measured) quirky(e measurement) (quirk, variable, bool) {
	v, _, ok := cutVariable(e.data)
	if !ok {
		return quirk{}, variable{}, false
	}
	for _, q := range quirks {
		if m.covers(e, q.measure(e.data, v)) {
			return q, v, true
		}
	}
	return quirk{}, variable{}, false
}

// addQuirky files a variable that a quirk confirms: after the separator as an authority,
// without its name where no digest covers that; before it only as a measurement, never as a setting.
func (s *keys) addQuirky(q quirk, v variable, d Digest, before bool) {
	if before {
		s.Others = append(s.Others, d)
		return
	}
	name := v.name
	if !q.named {
		name = "unknown"
	}
	s.authority(name, d)
}

// add files a confirmed variable. Only firmware measures before the separator; whoever
// controls the machine later can append, but not before it and not instead.
//
// An authority is what let an image start (TCG PFP 1.06, 3.3.4.8). After the separator that is
// any variable but known settings. Before it, firmware measures its settings, of
// which the profile names five and machines in user mode have more (AuditMode, DeployedMode, dbt,
// dbr, a vendor's own), and the entries of db that let option ROMs start: db again.
func (s *keys) add(v variable, d Digest, before bool, index int) error {
	if v.guid == globalGUID && v.name == "SecureBoot" {
		return s.setState(v.data, d, before, index)
	}
	settings := []struct {
		guid [16]byte
		name string
		to   *Digest
	}{{globalGUID, "PK", &s.PK}, {globalGUID, "KEK", &s.KEK}, {databaseGUID, "db", &s.DB}, {databaseGUID, "dbx", &s.DBX}}
	for _, c := range settings {
		if before && v.guid == c.guid && v.name == c.name && *c.to == "" {
			*c.to = d
			return nil
		}
	}
	if v.setting() || before && (v.guid != databaseGUID || v.name != "db") {
		s.setting(v.name, d)
		return nil
	}
	s.authority(v.name, d)
	return nil
}

// setting tells whether a variable is one by which secure boot is set up and which never lets an image
// start, whatever the place at which it is measured (UEFI 2.11, 3.3 and 32.3).
func (v variable) setting() bool {
	switch v.guid {
	case globalGUID:
		return slices.Contains([]string{"AuditMode", "DeployedMode", "SetupMode"}, v.name)
	case databaseGUID:
		return slices.Contains([]string{"dbx", "dbt", "dbr"}, v.name)
	}
	return false
}

func (s *keys) setState(data []byte, d Digest, before bool, index int) error {
	state := SecureBootDisabled
	switch {
	case bytes.Equal(data, []byte{1}):
		state = SecureBootEnabled
	case len(data) == 0, bytes.Equal(data, []byte{0}):
	default:
		return refuse("event", "event %d in PCR 7: variable SecureBoot is %.16x, which means nothing", index, data)
	}
	if !before && s.State == SecureBootUnknown {
		return refuse("event", "event %d in PCR 7: variable SecureBoot is measured after the separator only, where it proves nothing", index)
	}
	if s.State == SecureBootUnknown {
		s.State = state
		return nil
	}
	if s.State != state {
		return refuse("event", "event %d in PCR 7: variable SecureBoot is measured again with another value", index)
	}
	s.Others = append(s.Others, d)
	return nil
}
