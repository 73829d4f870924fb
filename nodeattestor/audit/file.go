package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// File is an audit log on disk. Its methods may be called at once. It is locked: two
// servers write two logs, for one chain has one writer.
type File struct {
	path     string
	maxSize  int64
	maxFiles int // rotated files that are kept, 0 for all

	mu     sync.Mutex
	file   *os.File
	size   int64
	head   Head
	torn   bool  // bytes of a line that was not acknowledged may stand after size
	failed error // why the last append failed; nil when it did not
	closed bool

	unpruned error // why rotated files were not removed
}

// DefaultMaxSize is when a log is rotated, in bytes.
const DefaultMaxSize = 64 << 20

// rotatedName is the name of the n-th rotated file: numbers sort as they were written.
func rotatedName(path string, lastSeq uint64) string { return fmt.Sprintf("%s.%020d", path, lastSeq) }

// Files lists the files of a log, oldest first, for Verify.
func Files(path string) ([]string, error) {
	rotated, err := filepath.Glob(path + "." + "[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]")
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	slices.Sort(rotated)
	return append(rotated, path), nil
}

// Open opens or creates the log at path, readable by its owner alone, and goes on where
// its chain stands. A line that a crash left unfinished was never acknowledged: it is
// removed, and an entry says so. A last line that is no audit entry is an error, for the
// log was tampered with or is not ours. maxSize 0 means DefaultMaxSize.
func Open(path string, maxSize int64, now time.Time) (*File, error) {
	if maxSize <= 0 {
		maxSize = DefaultMaxSize
	}
	f := &File{path: path, maxSize: maxSize}
	if err := f.open(); err != nil {
		return nil, err
	}
	torn, err := f.resume()
	if err == nil && torn > 0 {
		err = f.Append(Entry{Time: now.UTC(), Outcome: Recovered, Error: fmt.Sprintf("%d bytes of an unfinished line were removed", torn)})
	}
	if err != nil {
		return nil, errors.Join(err, f.file.Close())
	}
	return f, nil
}

func (f *File) open() error {
	file, err := os.OpenFile(f.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	info, err := file.Stat()
	if err == nil && info.Mode()&fs.ModeType != 0 {
		err = errors.New("is not a regular file")
	}
	if err == nil {
		err = lock(file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("audit: %s: %w", f.path, err), file.Close())
	}
	f.file, f.size = file, info.Size()
	return nil
}

// A server that was killed and is started again at once finds its old plugin ending still: the lock is waited for.
const (
	lockTries = 60
	lockPause = 50 * time.Millisecond
)

func lock(file *os.File) error {
	for range lockTries {
		if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return nil
		}
		time.Sleep(lockPause)
	}
	return errors.New("another process has it open; give each server a log of its own")
}

// resume finds the head from the last whole line, here or in the newest rotated file, and
// removes what stands after it; torn is how many bytes that were.
func (f *File) resume() (torn int64, err error) {
	last, end, err := lastLine(f.file, f.size)
	if err != nil {
		return 0, fmt.Errorf("audit: %s: %w", f.path, err)
	}
	if torn = f.size - end; torn > 0 {
		if err := f.file.Truncate(end); err != nil {
			return 0, fmt.Errorf("audit: %s: %w", f.path, err)
		}
		f.size = end
	}
	if last == nil {
		f.head, err = f.rotatedHead()
		return torn, err
	}
	f.head, err = headOf(last)
	if err != nil {
		return 0, fmt.Errorf("audit: %s: the last line is no audit entry (%w); move the file away to start a new log, and find out who wrote to it", f.path, err)
	}
	return torn, nil
}

func headOf(line []byte) (Head, error) {
	var e Entry
	if err := json.Unmarshal(line, &e); err != nil {
		return Head{}, err
	}
	if e.Seq == 0 {
		return Head{}, errors.New("it has no number")
	}
	return Head{Seq: e.Seq, Hash: hashOf(line)}, nil
}

// rotatedHead is the head of the newest rotated file; Start when there is none.
func (f *File) rotatedHead() (Head, error) {
	files, err := Files(f.path)
	if err != nil || len(files) == 1 {
		return Start(), err
	}
	return headOfFile(files[len(files)-2])
}

// headOfFile is the head after the last line of a file.
func headOfFile(name string) (Head, error) {
	file, err := os.Open(name)
	if err != nil {
		return Head{}, fmt.Errorf("audit: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return Head{}, errors.Join(fmt.Errorf("audit: %w", err), file.Close())
	}
	line, _, err := lastLine(file, info.Size())
	if err = errors.Join(err, file.Close()); err != nil {
		return Head{}, fmt.Errorf("audit: %s: %w", name, err)
	}
	return headOf(line)
}

// lastLine returns the last whole line without its line feed, nil when there is none, and
// where it ends.
func lastLine(r io.ReaderAt, size int64) (line []byte, end int64, err error) {
	start := max(0, size-2*MaxLine)
	tail := make([]byte, size-start)
	if _, err := r.ReadAt(tail, start); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	last := bytes.LastIndexByte(tail, '\n')
	if last < 0 {
		if start > 0 {
			return nil, 0, fmt.Errorf("no line within the last %d bytes: not an audit log", 2*MaxLine)
		}
		return nil, 0, nil
	}
	first := bytes.LastIndexByte(tail[:last], '\n') + 1
	return tail[first:last], start + int64(last) + 1, nil
}

// Append writes one entry and waits until the disk has it. An error means that the entry
// is not on record: the caller must then grant nothing on its strength. What a failed write
// left behind is removed, now or before the next one, so that the chain stays whole and goes
// on as soon as the disk takes it.
func (f *File) Append(e Entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = f.append(e)
	return f.failed
}

func (f *File) append(e Entry) error {
	if err := f.mend(); err != nil {
		return err
	}
	if f.size >= f.maxSize {
		if err := f.rotate(); err != nil {
			return err
		}
		f.unpruned = f.prune(e.Time)
	}
	return f.add(e)
}

// add puts an entry at the end of the chain.
func (f *File) add(e Entry) error {
	line, head, err := f.head.next(e)
	if err != nil {
		return err
	}
	if err := f.write(line); err != nil {
		return err
	}
	f.size += int64(len(line))
	f.head = head
	return nil
}

// prune removes the oldest rotated files beyond those that are kept. The chain first says so, and from which line on
// the rest goes on: a beginning that is gone without such an entry was taken away by another hand.
func (f *File) prune(now time.Time) error {
	files, err := Files(f.path)
	if err != nil || f.maxFiles == 0 {
		return err
	}
	rotated := files[:len(files)-1]
	for len(rotated) > f.maxFiles {
		last, err := headOfFile(rotated[0])
		if err != nil {
			return err
		}
		if err := f.add(Entry{Time: now, Outcome: Pruned, Pruned: &last}); err != nil {
			return err
		}
		if err := os.Remove(rotated[0]); err != nil {
			return fmt.Errorf("audit: prune: %w", err)
		}
		rotated = rotated[1:]
	}
	return nil
}

// Unpruned tells why an old rotated file could not be removed; nil when none is left to remove. The log is written
// all the same.
func (f *File) Unpruned() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unpruned
}

// write puts bytes after the last line, on the disk; what it could not finish it takes away again.
func (f *File) write(line []byte) error {
	_, err := f.file.WriteAt(line, f.size)
	if err == nil {
		err = f.file.Sync()
	}
	if err == nil {
		return nil
	}
	f.torn = true
	return errors.Join(f.explain(err), f.mend())
}

// mend removes what an unfinished write left after the last line.
func (f *File) mend() error {
	if f.closed {
		return fmt.Errorf("audit: %s: closed", f.path)
	}
	if !f.torn {
		return nil
	}
	if err := f.file.Truncate(f.size); err != nil {
		return fmt.Errorf("audit: %s: the unfinished line could not be removed: %w", f.path, err)
	}
	f.torn = false
	return nil
}

// explain says what a person can do about an error of the file system.
func (f *File) explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return fmt.Errorf("audit: %s: %w: make room (rotated files can be moved elsewhere) or raise the limit; nobody is let in until a line can be written", f.path, err)
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EIO):
		return fmt.Errorf("audit: %s: %w: the disk or its mount needs repair; nobody is let in until a line can be written", f.path, err)
	}
	return fmt.Errorf("audit: %s: %w", f.path, err)
}

// probeSize is about what an ordinary line takes, in bytes.
const probeSize = 4 << 10

// Writable tells why a line could not be written now: the log is closed, somebody took its file away, or
// the last line failed and so does a trial of the same size, which is removed again.
func (f *File) Writable() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.mend(); err != nil {
		return err
	}
	if err := f.inPlace(); err != nil {
		return err
	}
	if f.failed == nil {
		return nil
	}
	if err := f.write(bytes.Repeat([]byte(" "), probeSize)); err != nil {
		f.failed = err
		return err
	}
	f.torn, f.failed = true, nil
	return f.mend()
}

// inPlace refuses a path that no longer leads to the open file: lines would go where nobody reads them.
func (f *File) inPlace() error {
	open, err := f.file.Stat()
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	there, err := os.Stat(f.path)
	if err != nil {
		return fmt.Errorf("audit: the open log is no longer at its path: %w; put it back or restart the server", err)
	}
	if !os.SameFile(open, there) {
		return fmt.Errorf("audit: %s is another file than the one that is written to; put that one back or restart the server", f.path)
	}
	return nil
}

// rotate renames the full file and begins a new one, whose chain goes on from it. When the new one cannot be
// made, the full one stays the log.
func (f *File) rotate() error {
	old, size := f.file, f.size
	full := rotatedName(f.path, f.head.Seq)
	if err := os.Rename(f.path, full); err != nil {
		return f.explain(fmt.Errorf("rotate: %w", err))
	}
	if err := f.open(); err != nil {
		f.file, f.size = old, size
		return errors.Join(f.explain(fmt.Errorf("rotate: %w", err)), os.Rename(full, f.path))
	}
	if err := old.Close(); err != nil {
		return fmt.Errorf("audit: rotate: %w", err)
	}
	return nil
}

// Head is where the chain stands, to be noted elsewhere.
func (f *File) Head() Head {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.head
}

// Size is how large the file is that is written to now, in bytes.
func (f *File) Size() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size
}

// Limit sets the size at which the log is rotated, as Open does, and how many rotated files are kept from the next
// rotation on; 0 keeps all.
func (f *File) Limit(maxSize int64, maxFiles int) {
	if maxSize <= 0 {
		maxSize = DefaultMaxSize
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.maxSize, f.maxFiles = maxSize, maxFiles
}

// Close closes the log.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return f.file.Close()
}
