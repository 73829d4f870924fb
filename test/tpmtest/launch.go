package tpmtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
)

// Commands of swtpm's control channel (swtpm_ioctls(3)), where the chip set and the processor are to a real TPM.
const (
	setLocality = 5
	hashStart   = 6
	hashData    = 7
	hashEnd     = 8
)

// Launch is a dynamic launch (DRTM: Intel TXT's SENTER, AMD's SKINIT) on a TPM of StartSocket that is swtpm. The processor resets PCRs
// 17 to 22 to zeros and measures what it launches into 17, at locality 4, which no software has; what was
// launched goes on, at locality 2 (TCG PC Client Platform TPM Profile 1.05, 4.6.2 and 4.6.3). path is the TPM's socket.
func Launch(ctx context.Context, path string, dev Extender, launched []byte, then ...Extension) (err error) {
	conn, err := net.Dial("unix", filepath.Join(filepath.Dir(path), "ctrl.sock"))
	if err != nil {
		return fmt.Errorf("tpmtest: launch: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	sized := append(binary.BigEndian.AppendUint32(nil, uint32(len(launched))), launched...)
	for _, step := range []struct {
		command uint32
		body    []byte
	}{{setLocality, []byte{4}}, {hashStart, nil}, {hashData, sized}, {hashEnd, nil}, {setLocality, []byte{2}}} {
		if err := control(conn, step.command, step.body); err != nil {
			return err
		}
	}
	return errors.Join(Replay(ctx, dev, then), control(conn, setLocality, []byte{0}))
}

// control is one command of swtpm's control channel.
func control(conn net.Conn, command uint32, body []byte) error {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, command), body...)); err != nil {
		return fmt.Errorf("tpmtest: swtpm's control command %d: %w", command, err)
	}
	var answer [4]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return fmt.Errorf("tpmtest: swtpm's control command %d: %w", command, err)
	}
	if rc := binary.BigEndian.Uint32(answer[:]); rc != 0 {
		return fmt.Errorf("tpmtest: swtpm's control command %d: 0x%08x", command, rc)
	}
	return nil
}
