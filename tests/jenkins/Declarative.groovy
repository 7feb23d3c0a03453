/*
 * Reads a declarative Jenkinsfile as Jenkins does: sections where they belong, steps that exist. Prints as
 * JSON what it would run; exits with 1 and one line per mistake otherwise. The second argument is CodeNarc's
 * rule set to lint it with; further ones are files that need only be Groovy.
 *
 * Jenkins' own validator is part of a running Jenkins with its plugins.
 */
import groovy.json.JsonOutput
import org.codehaus.groovy.control.MultipleCompilationErrorsException

class Walk {
    static final Map<String, List<String>> SECTIONS = [
        pipeline: ['agent', 'environment', 'options', 'parameters', 'post', 'stages', 'tools', 'triggers'],
        stage: ['agent', 'environment', 'options', 'post', 'stages', 'steps', 'tools', 'when'],
        stages: ['stage'],
        agent: ['label'],
        options: ['buildDiscarder', 'disableConcurrentBuilds', 'retry', 'skipDefaultCheckout', 'timeout', 'timestamps'],
        parameters: ['booleanParam', 'choice', 'string'],
        triggers: ['cron', 'pollSCM'],
        post: ['always', 'failure', 'success', 'unsuccessful', 'cleanup'],
        when: ['beforeAgent', 'branch', 'expression'],
    ]
    static final List<String> STEPS = ['archiveArtifacts', 'echo', 'junit', 'retry', 'script', 'sh', 'timeout', 'withCredentials']
    static final List<String> VALUES = ['logRotator', 'file', 'sshUserPrivateKey', 'string', 'usernamePassword']

    List<String> mistakes = []
    List<Map> runs = []
    List<String> names = []
    Map env = [:]
    Map params = [:]

    def walk(String where, Closure body, List<Map> credentials = []) {
        List<String> seen = []
        body.resolveStrategy = Closure.DELEGATE_ONLY
        body.delegate = new Level(this, where, seen, credentials)
        body.call()
        if (where in ['stage', 'pipeline']) {
            int bodies = seen.count { it in ['steps', 'stages'] }
            if (bodies != 1) { mistakes << "${title(where)} needs one of steps and stages, not ${bodies}".toString() }
        }
        if (where == 'pipeline' && !('agent' in seen)) { mistakes << 'pipeline has no agent' }
        if (where != 'stages') {
            seen.countBy { it }.findAll { it.value > 1 && !(it.key in Walk.STEPS) }.each {
                mistakes << "${title(where)} has ${it.key} ${it.value} times".toString()
            }
        }
    }

    String title(String where) { where == 'stage' ? "stage '${names.last()}'" : where }
}

class Level {
    Walk walk
    String where
    List<String> seen
    List<Map> credentials

    Level(Walk walk, String where, List<String> seen, List<Map> credentials) {
        this.walk = walk; this.where = where; this.seen = seen; this.credentials = credentials
    }

    def getEnv() { walk.env }
    def getParams() { walk.params }
    def getNone() { 'none' }
    def getAny() { 'any' }

    def methodMissing(String name, Object given) {
        List args = given as List
        Closure body = args && args.last() instanceof Closure ? args.last() : null
        boolean steps = where == 'steps'
        if (name in Walk.VALUES) { return [kind: name] + (args && args[0] instanceof Map ? args[0] : [:]) }
        List<String> allowed = steps ? Walk.STEPS : (Walk.SECTIONS[where] ?: [])
        seen << name
        if (!(name in allowed)) {
            walk.mistakes << "${walk.title(where)}: ${name} does not belong here".toString()
            return null
        }
        if (steps) { return step(name, args, body) }
        if (name == 'stage') {
            walk.names << args[0]
            walk.walk('stage', body)
            walk.names.removeLast()
        } else if (name == 'steps' || where == 'post') {
            walk.walk('steps', body)
        } else if (name == 'expression') {
            body.resolveStrategy = Closure.DELEGATE_ONLY
            body.delegate = this
            body.call()
        } else if (body) {
            walk.walk(name, body)
        }
        return null
    }

    def step(String name, List args, Closure body) {
        if (name == 'withCredentials') {
            walk.walk('steps', body, credentials + args[0])
        } else if (body) {
            walk.walk('steps', body, credentials)
        } else {
            def what = args[0] instanceof Map ? args[0].script : args[0]
            if (what instanceof GString) {
                walk.mistakes << "${walk.names}: Groovy would put secrets into the text of `${name}`; use single quotes".toString()
            }
            walk.runs << [stages: walk.names.collect(), step: name, what: what.toString(),
                          credentials: credentials*.credentialsId, variables: credentials.collectMany {
                              [it.variable, it.keyFileVariable, it.usernameVariable, it.passwordVariable].findAll() }]
        }
        return 'x'
    }
}

Walk walk = new Walk()
try {
    Script script = new GroovyShell().parse(new File(args[0]))
    script.metaClass.pipeline = { Closure body -> walk.walk('pipeline', body) }
    script.run()
} catch (MultipleCompilationErrorsException | MissingPropertyException | MissingMethodException error) {
    walk.mistakes << error.message
}
args.drop(2).each { other ->
    try {
        new GroovyShell().parse(new File(other))
    } catch (MultipleCompilationErrorsException error) {
        walk.mistakes << error.message
    }
}
if (args.length > 1) {
    def file = new File(args[0]).absoluteFile
    def rules = org.codenarc.ruleset.RuleSetUtil.loadRuleSetFile("file:${new File(args[1]).absolutePath}")
    def source = new org.codenarc.source.SourceString(file.text, file.path, file.name)
    rules.rules.each { rule ->
        rule.applyTo(source).each { walk.mistakes << "line ${it.lineNumber}: ${it.rule.name}: ${it.message}".toString() }
    }
}
if (walk.mistakes) {
    walk.mistakes.each { System.err.println(it) }
    System.exit(1)
}
println JsonOutput.toJson(walk.runs)
