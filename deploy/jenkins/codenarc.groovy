// What CodeNarc looks for in the Jenkinsfile. The rest of its rules are about classes.
ruleset {
    description 'A declarative pipeline'
    ruleset('rulesets/basic.xml')
    ruleset('rulesets/exceptions.xml')
    ruleset('rulesets/unused.xml')
    ruleset('rulesets/groovyism.xml')
    ruleset('rulesets/formatting.xml') {
        include 'LineLength'
        include 'NoTabCharacter'
        include 'TrailingWhitespace'
    }
}
