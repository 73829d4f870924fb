package eventlog

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Limits of what is read of systemd's log to leave most of it out.
const (
	maxSource   = 64 << 20 // bytes
	maxNVRecord = 1 << 20  // bytes of a record that is left out
)

// PCRRecords reads systemd's log and leaves out the records of NV indices and of other registers, which a replay
// passes over. systemd adds one to it for each disk image that is mounted and each user that logs in, also for users
// without rights (systemd src/shared/pcrextend-util.c: pcrextend_verity_now, pcrextend_login_word), so that they have no end; those of PCRs
// are root's. All else stays as it is: who replays the log judges it. Errors are for a log beyond 64 MiB, one with
// more than MaxUserspaceLog bytes to keep, and the reader's.
func PCRRecords(r io.Reader) ([]byte, error) {
	limited := &io.LimitedReader{R: r, N: maxSource + 1}
	in := bufio.NewReaderSize(limited, 64<<10)
	var out, record []byte
	for {
		piece, err := in.ReadSlice(recordSeparator)
		ended := err == nil
		if ended {
			piece = piece[:len(piece)-1]
		}
		record = append(record, piece...)
		switch {
		case limited.N <= 0:
			return nil, fmt.Errorf("eventlog: systemd's log has more than the %d bytes that are read", maxSource)
		case len(record) > maxNVRecord:
			return nil, fmt.Errorf("eventlog: systemd's log has a record of more than the %d bytes that are read", maxNVRecord)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return nil, fmt.Errorf("eventlog: systemd's log: %w", err)
		}
		if !ofOtherRegister(record) {
			out = append(out, record...)
		}
		if len(out) > MaxUserspaceLog {
			return nil, fmt.Errorf("eventlog: systemd's log has more than the %d bytes of PCRs that are read", MaxUserspaceLog)
		}
		if !ended {
			return out, nil
		}
		record = append(record[:0], recordSeparator)
	}
}

// ofOtherRegister tells whether a record, with its separator, is whole and of no PCR.
func ofOtherRegister(text []byte) bool {
	if len(text) == 0 || text[0] != recordSeparator || !bytes.HasSuffix(text, []byte{'\n'}) {
		return false
	}
	var r record
	err := json.Unmarshal(text[1:], &r)
	return err == nil && r.PCR == nil && (r.NVIndex != nil || r.RTMR != nil)
}
