package verdict

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/keelson-project/keelson/boundedfile"
)

// maxPending bounds the queue file in bytes; it holds one result per node.
const maxPending = 64 << 20

// loadPending reads the file at path, strictly; one that is not there holds nothing. Its errors say what to do.
func loadPending(path string) (map[string]Result, error) {
	pending := map[string]Result{}
	data, err := boundedfile.ReadRegular(path, maxPending)
	if errors.Is(err, fs.ErrNotExist) {
		return pending, nil
	}
	if err != nil {
		return nil, fmt.Errorf("verdict: pending verdicts: %w; remove it if it is not Keelson's", err)
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
	if err := boundedfile.Replace(path, data, 0o600); err != nil {
		return fmt.Errorf("verdict: pending verdicts: %w", err)
	}
	return nil
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
