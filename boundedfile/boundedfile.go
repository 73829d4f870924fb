// Package boundedfile reads files that somebody else may have made, within a limit, and replaces files so that a crash
// leaves the old content or the new one.
//
// It protects against a file that is larger than memory or that never ends, against a named pipe in place of a
// configuration file, which would hold up whoever opens it, and against a file that is half written when the machine
// loses power.
package boundedfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Read reads a file of at most limit bytes. It may be a pipe or a file of sysfs, which do not say their size.
func Read(path string, limit int64) (data []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s has more than the %d bytes allowed", path, limit)
	}
	return data, nil
}

// ReadRegular is Read for a regular file, or a link to one: a service that reads a pipe waits for its writer.
func ReadRegular(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return Read(path, limit)
}

// Replace replaces a file atomically and waits until the disk has it. What a crash leaves beside it has one name,
// path with ".new" after it, and does not add up. An error leaves the old content.
func Replace(path string, data []byte, perm fs.FileMode) error {
	temporary := path + ".new"
	err := removeIfThere(temporary) // else a link that somebody put there would be followed
	if err == nil {
		err = write(temporary, data, perm)
	}
	if err != nil {
		err = errors.Join(err, removeIfThere(temporary))
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
			err = fmt.Errorf("%w: make room in %s", err, filepath.Dir(path))
		}
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return errors.Join(err, removeIfThere(temporary))
	}
	return syncFolder(filepath.Dir(path))
}

// write makes a file, with these permissions whatever the umask is.
func write(path string, data []byte, perm fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	err = f.Chmod(perm)
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncFolder makes a rename in a folder survive a loss of power.
func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
