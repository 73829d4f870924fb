package tpmtest

import (
	"crypto/sha1" // the log's first field is SHA-1 whatever the bank
	"encoding/binary"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// IMAEntry is one binary entry of an IMA log, template ima-sig, as the kernel writes it when a file
// of that path and content is measured without a signature (Linux Documentation/security/IMA-templates.rst).
func IMAEntry(path string, content []byte) []byte {
	return IMADigest(path, nodeclaim.SHA256, sumOf(nodeclaim.SHA256, content))
}

// IMADigest is IMAEntry for a file of which the digest is known: ima_hash of the kernel's command line says by which algorithm.
func IMADigest(path string, alg nodeclaim.HashAlg, digest []byte) []byte {
	sized := func(b []byte) []byte { return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...) }
	data := append(sized(append([]byte(alg.String()+":\x00"), digest...)), sized(append([]byte(path), 0))...)
	data = append(data, sized(nil)...)
	id := sha1.Sum(data)
	entry := append(binary.LittleEndian.AppendUint32(nil, 10), id[:]...)
	entry = append(entry, sized([]byte("ima-sig"))...)
	return append(entry, sized(data)...)
}
