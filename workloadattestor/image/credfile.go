package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// CredentialsFile is a credentials file (ParseCredentials) that is read again when it changes. It is an authn.Keychain and safe
// for concurrent use.
type CredentialsFile struct {
	path string
	// Report is called after the file was read again: with nil, or with what is wrong with it, in which case the last good
	// content stays in force. Set it before the first use. It may be nil.
	Report func(error)

	mu       sync.Mutex
	info     os.FileInfo // of the content that was read last, good or bad
	readAt   time.Time
	content  []byte
	problem  string
	current  *credentials
	versions uint64
}

// settled is the age at which a file's modification time tells it from all later content. Younger than that, the file is read
// again: a file system's clock may be that coarse.
const settled = 2 * time.Second

// OpenCredentials reads a credentials file.
func OpenCredentials(path string) (*CredentialsFile, error) {
	f := &CredentialsFile{path: path}
	info, content, err := f.read()
	if err != nil {
		return nil, fmt.Errorf("image: credentials: %w", err)
	}
	f.current, err = parseCredentials(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f.info, f.content, f.readAt = info, content, time.Now()
	return f, nil
}

// Resolve gives the credentials that the file has now.
func (f *CredentialsFile) Resolve(target authn.Resource) (authn.Authenticator, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refresh()
	return f.current.Resolve(target)
}

// version differs from the last one when the credentials are others.
func (f *CredentialsFile) version() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refresh()
	return f.versions
}

// refresh looks at the file, and reads it again if it may have changed. Kubernetes replaces a mounted Secret's folder by a symbolic
// link, so the inode is compared as well.
func (f *CredentialsFile) refresh() {
	info, err := os.Stat(f.path)
	if err == nil && os.SameFile(info, f.info) && info.ModTime().Equal(f.info.ModTime()) && info.Size() == f.info.Size() &&
		f.readAt.Sub(info.ModTime()).Abs() > settled {
		return
	}
	info, content, err := f.read()
	if err != nil {
		f.fail(err)
		return
	}
	f.info, f.readAt = info, time.Now()
	if bytes.Equal(content, f.content) && f.problem == "" {
		return
	}
	next, err := parseCredentials(content)
	if err != nil {
		f.fail(err)
		return
	}
	f.problem = ""
	if !bytes.Equal(content, f.content) {
		f.content, f.current = content, next
		f.versions++
	}
	f.report(nil)
}

// fail keeps the last good content, and reports each problem once.
func (f *CredentialsFile) fail(err error) {
	if f.problem == err.Error() {
		return
	}
	f.problem = err.Error()
	f.report(fmt.Errorf("image: credentials %s: the last good content stays in force: %w", f.path, err))
}

func (f *CredentialsFile) report(err error) {
	if f.Report != nil {
		f.Report(err)
	}
}

func (f *CredentialsFile) read() (_ os.FileInfo, _ []byte, err error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a regular file", f.path)
	}
	content, err := io.ReadAll(io.LimitReader(file, maxCredentials+1))
	return info, content, err
}
