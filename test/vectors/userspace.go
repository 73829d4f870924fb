package vectors

import (
	"encoding/hex"
	"encoding/json"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Userspace appends to the log of user space, as systemd writes it (a record of systemd 262:
// {"pcr":7,"digests":[{"hashAlg":"sha256","digest":"ff5b…"}],"content_type":"systemd","content":{"string":"os-separator",
// "bootId":"…","timestamp":1515761,"eventType":"os-separator"}}), and extends the PCR. text is what is said to have been measured.
func (l *Log) Userspace(log []byte, pcr int, event string, measured []byte, text string) []byte {
	l.Extend(pcr, measured)
	return append(log, l.Record(pcr, event, measured, text)...)
}

// Record is such a record of what was not extended.
func (l *Log) Record(pcr int, event string, measured []byte, text string) []byte {
	type digest struct {
		HashAlg string `json:"hashAlg"`
		Digest  string `json:"digest"`
	}
	type content struct {
		String    string `json:"string"`
		BootID    string `json:"bootId"`
		Timestamp int    `json:"timestamp"`
		EventType string `json:"eventType"`
	}
	r := struct {
		PCR         int      `json:"pcr"`
		Digests     []digest `json:"digests"`
		ContentType string   `json:"content_type"`
		Content     content  `json:"content"`
	}{pcr, nil, "systemd", content{text, "189c18dd7ba245f38cf49d9ac154b525", 1515761, event}}
	for _, b := range l.banks {
		r.Digests = append(r.Digests, digest{b.String(), hex.EncodeToString(sum(b, measured))})
	}
	out, err := json.Marshal(r)
	if err != nil {
		panic(err) // texts and numbers always encode
	}
	return append(append([]byte{0x1E}, out...), '\n')
}

func sum(alg nodeclaim.HashAlg, data []byte) []byte {
	h := alg.New()
	h.Write(data)
	return h.Sum(nil)
}
