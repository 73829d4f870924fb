package verdict

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxPending bounds the queue file in bytes; it holds one result per node.
const maxPending = 64 << 20

// loadPending reads the file at path, strictly; one that is not there holds nothing. Its errors say what to do.
func loadPending(path string) (map[string]Result, error) {
	pending := map[string]Result{}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return pending, nil
	}
	if err != nil {
		return nil, fmt.Errorf("verdict: pending verdicts: %w", err)
	}
	if info.Size() > maxPending {
		return nil, fmt.Errorf("verdict: pending verdicts: %s has %d bytes, more than %d; remove it if it is not Keelson's", path, info.Size(), maxPending)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("verdict: pending verdicts: %w", err)
	}
	if pending, err = parsePending(data); err != nil {
		return nil, fmt.Errorf("verdict: pending verdicts: %s: %w; remove the file to start without them", path, err)
	}
	return pending, nil
}

// parsePending reads the content of the file.
func parsePending(data []byte) (map[string]Result, error) {
	var pending map[string]Result
	if err := json.Unmarshal(data, &pending); err != nil {
		return nil, err
	}
	if pending == nil {
		return nil, errors.New("it holds no object")
	}
	for node, r := range pending {
		if r.Node != node || node == "" {
			return nil, fmt.Errorf("the result of node %.253q stands under %.253q", r.Node, node)
		}
	}
	return pending, nil
}

// savePending replaces the file at path atomically.
func savePending(path string, pending map[string]Result) error {
	data, err := marshalPending(pending)
	if err != nil {
		return fmt.Errorf("verdict: pending verdicts: %w", err)
	}
	temporary := path + ".new" // one name: what a crash leaves behind is replaced, and never adds up
	if err := writeSynced(temporary, data); err != nil {
		err = errors.Join(fmt.Errorf("verdict: pending verdicts: %w", err), removeIfThere(temporary))
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = fmt.Errorf("%w: make room in %s", err, filepath.Dir(path))
		}
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("verdict: pending verdicts: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// marshalPending is the file's content. What would not be read again after a restart is not written: with very
// many nodes, each keeps only the first of its reasons.
func marshalPending(pending map[string]Result) ([]byte, error) {
	data, err := json.Marshal(pending)
	if err != nil || len(data) <= maxPending {
		return data, err
	}
	short := make(map[string]Result, len(pending))
	for node, r := range pending {
		short[node] = r.bounded(1, maxReasonChars/4)
	}
	if data, err = json.Marshal(short); err == nil && len(data) > maxPending {
		err = fmt.Errorf("%d results take %d bytes, more than %d", len(short), len(data), maxPending)
	}
	return data, err
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir makes a rename in a directory survive a loss of power.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		return fmt.Errorf("verdict: pending verdicts: %w", err)
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
