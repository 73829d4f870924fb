package agentplugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
)

// patience is how long systemd may take to measure something before a quote goes on without waiting: a measurement is
// one command to the TPM.
const patience = 3 * time.Second

// quoteWithLog quotes, and reads what systemd's log has of PCRs if the server wants it, while nothing writes to that log: systemd holds it locked
// while it extends a PCR and adds the record, and asks who quotes to lock it too (systemd-pcrextend(8), Files). Without
// that, a PCR could be quoted whose record is not there yet.
func (n *node) quoteWithLog(ctx context.Context, c *evidence.Challenge) (quotes []evidence.Quote, err error) {
	if !c.WantUserspaceLog {
		return n.quote(ctx, c)
	}
	f, err := os.Open(n.config.systemdLog)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }() // which unlocks it
	if err := shareLock(ctx, f, patience); err != nil {
		return nil, fmt.Errorf("lock %s: %w", n.config.systemdLog, err)
	}
	if quotes, err = n.quote(ctx, c); err != nil {
		return nil, err
	}
	log, err := eventlog.PCRRecords(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", n.config.systemdLog, err)
	}
	n.logs[evidence.UserspaceLog] = &logReader{kind: evidence.UserspaceLog, from: io.NopCloser(bytes.NewReader(log))}
	return quotes, nil
}

// shareLock takes a shared lock. It gives up without an error when somebody holds the file for too long: whoever can open
// it can lock it, and must not keep the node from attesting.
func shareLock(ctx context.Context, f *os.File, patience time.Duration) error {
	const pause = 10 * time.Millisecond
	for waited := time.Duration(0); waited < patience; waited += pause {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
		if err == nil || !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	return nil
}
