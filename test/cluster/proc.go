package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// mark is the environment variable that every process of a run inherits, so that a stray grandchild (a containerd shim, a
// plugin whose agent was killed) can be told from somebody else's process and ended at the end of the run.
const mark = "KEELSON_TEST_RUN"

// Group starts processes and ends them all, last started first. The kernel kills them when this process dies in whatever way:
// each is started from one operating system thread that lives as long as the group, because Linux ties the parent-death
// signal to the thread that forked.
type Group struct {
	dir   string // logs
	id    string // value of the mark
	start chan startRequest
	done  chan struct{}

	mu     sync.Mutex
	procs  []*Process
	closed bool
}

type startRequest struct {
	cmd    *exec.Cmd
	result chan error
}

// Process is one running program.
type Process struct {
	// Name is what people see, Log the file that holds the program's output.
	Name, Log string

	cmd  *exec.Cmd
	log  *os.File
	done chan struct{}
	err  error // of Wait, readable once done is closed
}

// Command is what to start.
type Command struct {
	// Name is shown to people and names the log file; it is unique in a group, or the log is appended to.
	Name string
	Path string
	Args []string
	// Env is added to this process's own environment.
	Env []string
	// Dir is the working directory; the group's folder when empty.
	Dir string
}

// NewGroup makes a group whose logs go to dir.
func NewGroup(dir string) *Group {
	g := &Group{dir: dir, id: dir, start: make(chan startRequest), done: make(chan struct{})}
	go g.spawn()
	return g
}

// spawn starts every process from one thread that is never given back.
func (g *Group) spawn() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		select {
		case r := <-g.start:
			r.result <- r.cmd.Start()
		case <-g.done:
			return
		}
	}
}

// Start starts a program. It ends when it does so itself, at Stop, or at the group's Close.
func (g *Group) Start(c Command) (*Process, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, fmt.Errorf("cluster: %s: the run is ending", c.Name)
	}
	path := filepath.Join(g.dir, c.Name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cluster: %s: %w", c.Name, err)
	}
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Dir = c.Dir
	if cmd.Dir == "" {
		cmd.Dir = g.dir
	}
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := g.launch(cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("cluster: start %s: %w", c.Name, err), log.Close())
	}
	p := &Process{Name: c.Name, Log: path, cmd: cmd, log: log, done: make(chan struct{})}
	go p.wait()
	g.procs = append(g.procs, p)
	return p, nil
}

// StartCmd starts a command that the caller waits for. It dies with this process, and at the group's Close at the latest.
func (g *Group) StartCmd(cmd *exec.Cmd) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return fmt.Errorf("cluster: %s: the run is ending", cmd.Path)
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	if err := g.launch(cmd); err != nil {
		return fmt.Errorf("cluster: start %s: %w", cmd.Path, err)
	}
	return nil
}

func (g *Group) launch(cmd *exec.Cmd) error {
	// Temporary files, such as the sockets of plugins, go with the group's folder however the program ends.
	tmp := filepath.Join(g.dir, "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, mark+"="+g.id, "TMPDIR="+tmp)
	// A process group of its own: an interrupt typed at the terminal reaches us alone, and we end the others in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	r := startRequest{cmd, make(chan error, 1)}
	g.start <- r
	return <-r.result
}

func (p *Process) wait() {
	p.err = p.cmd.Wait()
	_ = p.log.Close() // the child wrote it; nothing of ours is buffered
	close(p.done)
}

// PID is the program's process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err tells how the program ended, with the end of its log; nil while it runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	how := "exit status 0"
	if p.err != nil {
		how = p.err.Error()
	}
	return fmt.Errorf("cluster: %s ended: %s\n%s", p.Name, how, p.Tail(15))
}

// Tail returns the last lines of the program's log.
func (p *Process) Tail(lines int) string {
	content, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimRight(content, "\n"), []byte("\n"))
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return string(bytes.Join(all, []byte("\n")))
}

// Stop asks the program to end, and kills its process group when it does not within the grace.
func (p *Process) Stop(grace time.Duration) {
	select {
	case <-p.done:
		return
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may end between the check and the signal
	select {
	case <-p.done:
	case <-time.After(grace):
		_ = syscall.Kill(-p.PID(), syscall.SIGKILL) // as above
		<-p.done
	}
}

// Until waits until check returns nil, asking every 100 ms; it gives up when the program ends or ctx does, and then the last
// refusal and the end of the log are in the error.
func (p *Process) Until(ctx context.Context, check func(context.Context) error) error {
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return p.Err()
		case <-ctx.Done():
			return fmt.Errorf("cluster: %s is not ready: %w; last: %w\n%s", p.Name, ctx.Err(), err, p.Tail(15))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Close ends every process, last started first, and then whatever they left behind.
func (g *Group) Close() error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	g.closed = true
	procs := g.procs
	g.mu.Unlock()
	for i := len(procs) - 1; i >= 0; i-- {
		procs[i].Stop(5 * time.Second)
	}
	close(g.done)
	return Sweep(g.id)
}

// Sweep kills every process of the group that logged to dir, and waits until none is left. A group does this itself when it
// closes; it is for those who clean up after a process that could not.
func Sweep(dir string) error {
	deadline := time.Now().Add(time.Minute) // a process that is killed ends when the kernel gets to it
	for {
		left, err := marked(dir)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cluster: processes %v do not end", left)
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone by now
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// marked lists processes with this run's mark, except this one. Those of other users cannot be read and are not ours.
func marked(id string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	want := []byte(mark + "=" + id)
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		environ, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil {
			continue
		}
		for _, variable := range bytes.Split(environ, []byte{0}) {
			if bytes.Equal(variable, want) && !zombie(pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}

func say(log io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(log, format+"\n", args...) // progress for people; losing it loses nothing
}
