package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// Summary is what a whole log says of itself.
type Summary struct {
	Head  Head   // after the last line
	First uint64 // number of the first line that is still there; above 1 where the server pruned what came before
	Found bool   // whether the log has the line that was looked for
}

// VerifyLog verifies a log at a path with its rotated files, and tells whether it holds a line with the hash
// wanted (a head that was noted before; "" for none). A log whose beginning is gone is whole only where an entry
// says that the server itself pruned exactly that. What is wrong with a line is a *Broken, in an error that names
// the file.
func VerifyLog(path, wanted string) (Summary, error) {
	files, err := Files(path)
	if err != nil {
		return Summary{}, err
	}
	begin, err := beginning(files[0])
	if err != nil {
		return Summary{}, err
	}
	s := Summary{Head: begin, First: begin.Seq + 1}
	allowed := begin == Start()
	for _, name := range files {
		s.Head, err = verifyFile(name, s.Head, func(e Entry, h Head) {
			s.Found = s.Found || h.Hash == wanted
			allowed = allowed || e.Outcome == Pruned && e.Pruned != nil && *e.Pruned == begin
		})
		if err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
	}
	if !allowed {
		return s, fmt.Errorf("%s: %w", files[0], &Broken{1, fmt.Sprintf("has number %d, wanted 1: what came before was removed, and no entry says that the server pruned it", s.First)})
	}
	return s, nil
}

func verifyFile(name string, from Head, visit func(Entry, Head)) (head Head, err error) {
	f, err := os.Open(name)
	if err != nil {
		return from, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return walk(f, from, visit)
}

// beginning is the head that the first line of a log's first file goes on from, by its own word.
func beginning(name string) (head Head, err error) {
	f, err := os.Open(name)
	if err != nil {
		return Head{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	line, err := readLine(bufio.NewReaderSize(f, MaxLine), 1)
	if err != nil || line == nil {
		return Start(), ignoreBroken(err)
	}
	var e Entry
	if err := json.Unmarshal(line, &e); err != nil || e.Seq <= 1 {
		return Start(), nil // what is no entry, or claims to be the first, is judged as the first line
	}
	return Head{Seq: e.Seq - 1, Hash: e.Prev}, nil
}

// ignoreBroken leaves what is wrong with a line to the verification, which says it in full.
func ignoreBroken(err error) error {
	if errors.As(err, new(*Broken)) {
		return nil
	}
	return err
}
