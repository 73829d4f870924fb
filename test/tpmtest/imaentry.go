package tpmtest

import (
	"crypto/sha1" // the log's first field is SHA-1 whatever the bank
	"crypto/sha256"
	"encoding/binary"
)

// IMAEntry is one binary entry of an IMA log, template ima-sig, as the kernel writes it when a file
// of that path and content is measured without a signature (Linux Documentation/security/IMA-templates.rst).
func IMAEntry(path string, content []byte) []byte {
	sized := func(b []byte) []byte { return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...) }
	sum := sha256.Sum256(content)
	data := append(sized(append([]byte("sha256:\x00"), sum[:]...)), sized(append([]byte(path), 0))...)
	data = append(data, sized(nil)...)
	id := sha1.Sum(data)
	entry := append(binary.LittleEndian.AppendUint32(nil, 10), id[:]...)
	entry = append(entry, sized([]byte("ima-sig"))...)
	return append(entry, sized(data)...)
}
