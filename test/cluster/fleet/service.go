package fleet

import (
	"sync"
	"syscall"
	"time"

	"github.com/keelson-project/keelson/test/cluster"
)

// Service is a program of a node under supervision, as a machine's init system supervises it: when it ends, it is started again.
type Service struct {
	name    string
	node    *Node
	command cluster.Command
	stop    chan struct{}
	ended   chan struct{}
	once    sync.Once

	mu      sync.Mutex
	current *cluster.Process
	starts  int
}

// restartPause is the init system's pause before it starts a program again.
const restartPause = 500 * time.Millisecond

func supervise(n *Node, c cluster.Command) (*Service, error) {
	s := &Service{name: c.Name, node: n, command: c, stop: make(chan struct{}), ended: make(chan struct{})}
	p, err := s.launch()
	if err != nil {
		return nil, err
	}
	go s.run(p)
	return s, nil
}

func (s *Service) launch() (*cluster.Process, error) {
	p, err := s.node.Start(s.command)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = p
	s.starts++
	return p, nil
}

func (s *Service) run(p *cluster.Process) {
	defer close(s.ended)
	for {
		select {
		case <-p.Done():
		case <-s.stop:
			p.Stop(3 * time.Second)
			return
		}
		select {
		case <-time.After(restartPause):
		case <-s.stop:
			return
		}
		next, err := s.launch()
		if err != nil { // the run is ending
			return
		}
		p = next
	}
}

// Process is the program's latest process.
func (s *Service) Process() *cluster.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// Starts tells how many times the program was started.
func (s *Service) Starts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.starts
}

// Kill ends the program at once, as kill -9 does; it is started again.
func (s *Service) Kill() {
	_ = syscall.Kill(-s.Process().PID(), syscall.SIGKILL) // it may have ended by itself
}

// Stop ends the program and its supervision.
func (s *Service) Stop() {
	s.once.Do(func() { close(s.stop) })
	<-s.ended
}
