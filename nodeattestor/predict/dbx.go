package predict

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"unicode/utf16"
)

// DBX changes the signatures that secure boot forbids.
type DBX struct {
	// Content is the variable's whole content after the update, as signature lists; with the four
	// bytes of attributes before it, as Linux's efivarfs has it, too.
	Content []byte
	// Update is an authenticated update that is appended (uefi.org's DBXUpdate.bin, with or without
	// its time-based authentication header). One of both is given.
	Update []byte
}

// MaxDBX bounds the variable in bytes; a large one has some 30 kB.
const MaxDBX = 1 << 20

// Signature lists (UEFI 2.11, 32.4.1).
var (
	databaseGUID = []byte{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65,
		0x6f}
	sha256GUID = []byte{0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43,
		0x28}
	pkcs7GUID = []byte{0x9d, 0xd2, 0xaf, 0x4a, 0xdf, 0x68, 0xee, 0x49, 0x8a, 0xa9, 0x34, 0x7d, 0x37, 0x56, 0x65,
		0xa7}
)

const (
	guidSize = 16
	listHead = guidSize + 4 + 4 + 4
	ownerLen = guidSize
)

// signatureList is an EFI_SIGNATURE_LIST.
type signatureList struct {
	head    []byte // type, sizes and the header of the list
	kind    []byte
	entries [][]byte // each with its owner
}

// parseLists reads signature lists, to the last byte.
func parseLists(data []byte) ([]signatureList, error) {
	var out []signatureList
	for rest := data; len(rest) > 0; {
		at := len(data) - len(rest)
		if len(rest) < listHead {
			return nil, fmt.Errorf("predict: signature list at byte %d is cut: %d bytes are left", at, len(rest))
		}
		size := int64(binary.LittleEndian.Uint32(rest[guidSize:]))
		head := listHead + int64(binary.LittleEndian.Uint32(rest[guidSize+4:]))
		each := int64(binary.LittleEndian.Uint32(rest[guidSize+8:]))
		if size > int64(len(rest)) || head > size || each <= ownerLen || (size-head)%each != 0 {
			return nil, fmt.Errorf("predict: signature list at byte %d has a size of %d bytes with %d before entries of %d, of %d bytes left", at, size, head, each, len(rest))
		}
		l := signatureList{head: rest[:head], kind: rest[:guidSize]}
		for e := rest[head:size]; len(e) > 0; e = e[each:] {
			l.entries = append(l.entries, e[:each])
		}
		out = append(out, l)
		rest = rest[size:]
	}
	return out, nil
}

// appended is what EDK II makes of a variable and an appended update: new lists follow the old
// ones, without entries that one of the old ones of that type and size has
// (SecurityPkg/Library/AuthVariableLib/AuthService.c: FilterSignatureList).
func appended(old, update []byte) ([]byte, error) {
	have, err := parseLists(old)
	if err != nil {
		return nil, fmt.Errorf("the variable as it was: %w", err)
	}
	more, err := parseLists(update)
	if err != nil {
		return nil, fmt.Errorf("the update: %w", err)
	}
	out := slices.Clone(old)
	for _, l := range more {
		var fresh []byte
		for _, e := range l.entries {
			known := slices.ContainsFunc(have, func(h signatureList) bool {
				return bytes.Equal(h.kind, l.kind) && slices.ContainsFunc(h.entries,
					func(x []byte) bool { return bytes.Equal(x, e) })
			})
			if !known {
				fresh = append(fresh, e...)
			}
		}
		if len(fresh) == 0 {
			continue
		}
		head := slices.Clone(l.head)
		binary.LittleEndian.PutUint32(head[guidSize:], uint32(len(head)+len(fresh))) //nolint:gosec // bounded where files are read
		out = append(append(out, head...), fresh...)
	}
	return out, nil
}

// withoutAuthentication drops an EFI_VARIABLE_AUTHENTICATION_2 (UEFI 2.11, 8.2.2): a time of 16
// bytes and a WIN_CERTIFICATE_UEFI_GUID whose length it says.
func withoutAuthentication(update []byte) ([]byte, error) {
	const timeSize, certificateHead = 16, 8 + guidSize
	if len(update) < timeSize+certificateHead || !bytes.Equal(update[timeSize+8:timeSize+certificateHead], pkcs7GUID) {
		return update, nil
	}
	size := int64(binary.LittleEndian.Uint32(update[timeSize:]))
	if size < certificateHead || timeSize+size > int64(len(update)) {
		return nil, fmt.Errorf("predict: the update says that its signature has %d bytes, but has %d in all", size,
			len(update))
	}
	return update[timeSize+size:], nil
}

// apply predicts PCR 7 (TCG PFP 1.06, 3.3.4.8): the event of variable dbx before the separator
// becomes that of its new content.
func (x DBX) apply(d *draft) error {
	if (x.Content == nil) == (x.Update == nil) {
		return fmt.Errorf("predict: give either the content of dbx after the update, or an update")
	}
	if len(x.Content) > MaxDBX || len(x.Update) > MaxDBX {
		return fmt.Errorf("predict: dbx has more than the %d bytes allowed", MaxDBX)
	}
	if d.base.facts.SecureBoot.DBX == "" {
		return fmt.Errorf("predict: the boot before did not measure dbx into PCR 7")
	}
	at := slices.IndexFunc(d.byPCR[7], func(e event) bool {
		_, ok := dbxContent(e.data)
		return ok && bytes.Equal(hash(d.base.alg, e.data), e.digest)
	})
	if at < 0 {
		return fmt.Errorf("predict: the log of the boot before has no variable dbx that its digest confirms")
	}
	old, _ := dbxContent(d.byPCR[7][at].data)
	content, err := x.content(old)
	if err != nil {
		return err
	}
	lists, err := parseLists(content)
	if err != nil {
		return fmt.Errorf("dbx: %w", err)
	}
	for _, l := range lists {
		for _, e := range l.entries {
			if name, ok := d.images[string(e[ownerLen:])]; ok && bytes.Equal(l.kind, sha256GUID) {
				return fmt.Errorf("%s: the new dbx forbids this image: a machine with secure boot will not start it",
					name)
			}
		}
	}
	events := slices.Clone(d.byPCR[7])
	events[at] = event{typeVariable, nil, dbxVariable(content), fmt.Sprintf("variable dbx with %d bytes", len(content))}
	events[at].digest = hash(d.base.alg, events[at].data)
	d.set(7, events)
	return nil
}

// content is the variable after the update.
func (x DBX) content(old []byte) ([]byte, error) {
	if x.Update != nil {
		update, err := withoutAuthentication(x.Update)
		if err != nil {
			return nil, err
		}
		return appended(old, update)
	}
	if _, err := parseLists(x.Content); err != nil && len(x.Content) >= 4 {
		if _, err := parseLists(x.Content[4:]); err == nil {
			return x.Content[4:], nil
		}
	}
	return x.Content, nil
}

// dbxVariable is UEFI_VARIABLE_DATA of dbx (TCG PFP 1.06, 10.2.6).
func dbxVariable(content []byte) []byte {
	name := utf16.Encode([]rune("dbx"))
	out := slices.Clone(databaseGUID)
	out = binary.LittleEndian.AppendUint64(out, uint64(len(name)))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(content)))
	for _, c := range name {
		out = binary.LittleEndian.AppendUint16(out, c)
	}
	return append(out, content...)
}

// dbxContent is the content of UEFI_VARIABLE_DATA of dbx.
func dbxContent(data []byte) ([]byte, bool) {
	head := dbxVariable(nil)
	const sizeAt, sizeEnd = guidSize + 8, guidSize + 16
	if len(data) < len(head) || !bytes.Equal(data[:sizeAt], head[:sizeAt]) || !bytes.Equal(data[sizeEnd:len(head)],
		head[sizeEnd:]) {
		return nil, false
	}
	return data[len(head):], binary.LittleEndian.Uint64(data[sizeAt:]) == uint64(len(data)-len(head)) //nolint:gosec // not negative
}
